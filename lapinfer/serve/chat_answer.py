"""Answers to chats as OpenAI's clients read them: a completion, or the chunks that it grows by.

Source: openai.types.chat.chat_completion and chat_completion_chunk; `reasoning_content` as in llama-server and vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lapinfer.serve.forced_calls import Calls
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.token_texts import TokenTexts
from lapinfer.text.generation import Token
from lapinfer.text.tool_calls import ToolCall


class Choice:
    """One answer: `push` gives what grows, `message` all of it so far."""

    def __init__(self, index: int, calls: Calls) -> None:
        self.index, self._told = index, calls
        self._text = self._thinking = ""
        self._calls: list[dict[str, Any]] = []
        self.last: Token | None = None

    def push(self, token: Token) -> Iterator[dict[str, Any]]:
        """Deltas of a message."""
        self.last = token = self._told.push(token)
        if token.thinking:
            self._thinking += token.thinking
            yield {"reasoning_content": token.thinking}
        if token.text:
            self._text += token.text
            yield {"content": token.text}
        for call in token.tool_calls:
            yield {"tool_calls": [{"index": len(self._calls)} | self._called(call)]}

    def _called(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        made = {"id": call.id, "type": "function", "function": function}
        self._calls.append(made)
        return made

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None where it has not."""
        if self.last is None or self.last.finish_reason is None:
            return None
        if self._calls:
            return "tool_calls"
        return "length" if self.last.finish_reason == "length" else "stop"

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None}
        if self._thinking:
            message["reasoning_content"] = self._thinking
        if self._calls:
            message |= {"content": self._text or None, "tool_calls": self._calls}
        return message


class ChatAnswer:
    """All that a request is answered: `start`, `push` for each token, `last`; or `whole` after the last token."""

    def __init__(
        self, id: str, created: int, model: str, choices: Sequence[Choice], usage: Usage, texts: TokenTexts | None
    ) -> None:
        """texts: where log-probabilities are told."""
        self._id, self._about = id, {"created": created, "model": model, "system_fingerprint": None}
        self._choices, self.usage, self._texts = choices, usage, texts
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in choices]

    def start(self) -> Iterator[dict[str, Any]]:
        for choice in self._choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def push(self, index: int, token: Token) -> Iterator[dict[str, Any]]:
        """Chunks; log-probabilities go with the first, as a token is told in the chunk of its text or before it."""
        self.usage.push(index, token)
        choice, told = self._choices[index], [] if self._texts is None else self._texts.judged(token)
        self._logprobs[index] += told
        deltas = [*choice.push(token)]
        if not deltas and told:
            deltas = [{"content": ""}]
        for delta in deltas:
            yield self._chunk(choice, delta, told)
            told = []
        if choice.finish_reason is not None:
            yield self._chunk(choice, {}, finish=choice.finish_reason)

    def last(self) -> dict[str, Any]:
        """The chunk that has the numbers of tokens, and no choice."""
        return self._object("chat.completion.chunk", []) | self.usage.numbers()

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": choice.index,
                "message": choice.message(),
                "logprobs": None if self._texts is None else {"content": told, "refusal": None},
                "finish_reason": choice.finish_reason,
            }
            for choice, told in zip(self._choices, self._logprobs, strict=True)
        ]
        return self._object("chat.completion", choices) | self.usage.numbers()

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], told: Sequence[Any] = (), finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = {"content": [*told], "refusal": None} if told else None
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._object("chat.completion.chunk", [body])

    def _object(self, kind: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, **self._about, "choices": choices}
