"""A whole answer, made of the events of its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lapinfer.text.generation import FinishReason, Timings, Token
from lapinfer.text.likelihood import Chosen, Top
from lapinfer.text.tool_calls import ToolCall


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `tokens` include the token that ended it, `text` does not; so do `logprobs` and `top`, where they
    were asked for.

    `thinking` is what a chat's model said before its answer: in `<think>` … `</think>`, or to other channels than the
    final one. It is not part of `text`; templates take it back as a message's `reasoning_content`.
    `tool_calls` are what it wants to be called, in a chat that was given tools; they are not part of `text` either.
    `prompt` are the prompt's tokens with their log-probabilities, where `prompt_logprobs` asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    timings: Timings
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    top: tuple[Top, ...] = ()
    prompt: tuple[Chosen, ...] = ()


def completed(events: Iterable[Token]) -> Completion:
    """The whole answer of a stream."""
    tokens = list(events)
    last = tokens[-1]
    return Completion(
        text="".join(t.text for t in tokens),
        tokens=tuple(t.token for t in tokens),
        logprobs=tuple(t.logprob for t in tokens if t.logprob is not None),
        finish_reason=last.finish_reason or "length",
        timings=last.timings,
        thinking="".join(t.thinking for t in tokens),
        tool_calls=tuple(call for t in tokens for call in t.tool_calls),
        top=tuple(t.top for t in tokens if t.top),
        prompt=tokens[0].prompt,
    )


def gathered(events: Iterable[tuple[int, Token]], count: int) -> list[Completion]:
    """The whole answers of a batch of so many, in their order."""
    tokens: list[list[Token]] = [[] for _ in range(count)]
    for index, token in events:
        tokens[index].append(token)
    return [completed(each) for each in tokens]
