"""An answer on stdout as it grows, with or without the thinking before it, and what is to be said of it on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lapinfer.cli.console import note, write_answer
from lapinfer.interrupts import check

if TYPE_CHECKING:
    from lapinfer.text.generation import Token
    from lapinfer.text.language_model import LanguageModel


class Pen(Protocol):
    """What writes an answer to stdout: pieces as they come, and at the end what it still holds back."""

    def write(self, text: str) -> None: ...

    def lift(self) -> None: ...


class PlainPen:
    """The text as it is."""

    def write(self, text: str) -> None:
        write_answer(text)

    def lift(self) -> None: ...


@dataclass(slots=True)
class Answer:
    """What was said so far: `text`, and `thinking` before it. streaming: whether it is written at once."""

    show_thinking: bool = False
    streaming: bool = True
    text: str = ""
    thinking: str = ""
    pen: Pen = field(default_factory=PlainPen)
    _shown: list[str] = field(default_factory=list)

    def add(self, token: Token) -> None:
        """Another token's part of the answer."""
        if token.thinking and not self.thinking and not self.show_thinking and sys.stderr.isatty():
            note("thinking …")
        if self.show_thinking:
            self._show(token.thinking)
            self._show("\n\n" if self.thinking + token.thinking and token.text and not self.text else "")
        self._show(token.text)
        self.thinking += token.thinking
        self.text += token.text

    def finish(self) -> None:
        """Write what was not written as it grew."""
        if not self.streaming:
            self.pen.write("".join(self._shown))

    def _show(self, text: str) -> None:
        if self.streaming:
            self.pen.write(text)
        else:
            self._shown.append(text)


def answer_to(
    model: LanguageModel, messages: list[dict[str, str]], options: dict[str, Any], raw: bool
) -> Iterator[Token]:
    """The answer to the last message; raw: its continuation, without the ones before it."""
    return model.stream(messages[-1]["content"], **options) if raw else model.stream_chat(messages, **options)


def print_answer(
    model: LanguageModel, events: Iterator[Token], answer: Answer, *, options: dict[str, Any], verbose: bool
) -> None:
    """Write the answer to stdout as it grows, then to stderr what should be known of it, and a line of figures.

    `answer` gets its pieces, so that the caller has those of an answer that Ctrl-C has stopped.
    options: those of the request.
    """
    last, prompt_bytes, count, limit = None, 0, 0, options["max_tokens"]
    try:
        for last in events:
            check()
            if not count:
                prompt_bytes = model.usage.totals()["bytes"]
                _note_room(model, last, limit)
            count += 1
            answer.add(last)
        answer.finish()
    finally:
        answer.pen.lift()
        sys.stdout.write("\n")
        sys.stdout.flush()
    if last is not None:
        _note_end(model, last, answer, count, limit)
        if options.get("schema") is not None and last.finish_reason == "length":
            note(f"note: cut after {count} tokens, so this is not whole JSON: -n gives it more")
    if last is not None and (verbose or sys.stderr.isatty()):
        t, read = last.timings, last.timings.prompt_tokens - last.timings.reused_tokens
        known = f" ({t.reused_tokens:,} more were known)" if t.reused_tokens else ""
        touched = (model.usage.totals()["bytes"] - prompt_bytes) / max(count - 1, 1)
        note(
            f"prompt {read} tokens{known}, {t.prompt_per_second:.1f} tok/s, first token {t.ttft_ms:.0f} ms; "
            f"answer {count} tokens, {t.tokens_per_second:.1f} tok/s; {touched / 1e6:.1f} MB touched per token"
        )
        if t.drafted_tokens:
            note(f"{t.steps} steps; {t.drafted_tokens} tokens were guessed, {t.kept_tokens} of them right")
        if (pool := getattr(model.model, "pool", None)) is not None:
            note(pool.line(last.timings.prompt_tokens + count))
        if (exchange := getattr(model.model, "exchange", None)) is not None:
            note(exchange.traffic.line())


def _room(model: LanguageModel, token: Token) -> int:
    """Tokens of an answer that the context has room for; nothing is read after the last."""
    return model.model.ctx - token.timings.prompt_tokens + 1


def _note_room(model: LanguageModel, first: Token, limit: int | None) -> None:
    """Say before the answer that it cannot be as long as -n lets it."""
    if limit is not None and limit > (room := _room(model, first)):
        note(f"note: the context of {model.model.ctx:,} has room for {room:,} tokens, not {limit:,}: -c gives it more")


def _note_end(model: LanguageModel, last: Token, answer: Answer, count: int, limit: int | None) -> None:
    """Say why there is no answer, or no more of it, where that cannot be seen."""
    full, makers = last.finish_reason == "length", model.recommended
    if answer.thinking and not answer.text:
        more = "give it more with -n" if full else "ask again"
        seen = "" if answer.show_thinking else ", or see it with --thinking"
        note(f"note: after {count} tokens of thinking there is no answer: {more}{seen}")
    elif full and limit is None and (makers.max_tokens == count or makers.max_length is not None):
        note(f"note: the answer ends after {count} tokens, as generation_config.json has it: -n gives it more")
    elif full and limit is None and count == _room(model, last):
        full_context = f"the context of {model.model.ctx:,} is full"
        note(f"note: the answer ends after {count} tokens, where {full_context}: -c gives it more")
