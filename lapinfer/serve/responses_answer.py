"""Answers as OpenAI's clients read them from /v1/responses: a response, or the events that it grows by.

Source: openai.types.responses.response, response_output_item and response_stream_event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lapinfer.serve.forced_calls import Calls
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.token_texts import TokenTexts
from lapinfer.text.generation import Token
from lapinfer.text.tool_calls import ToolCall

Event = dict[str, Any]
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""The part that an item's text stands in, which also names the events of it."""


class Reply:
    """One response, told by its tokens: `start()`, then `push(token)` for each; the last one ends it."""

    def __init__(
        self, id: str, about: Mapping[str, Any], usage: Usage, *, calls: Calls, texts: TokenTexts | None
    ) -> None:
        """about: what the response repeats of its request. texts: where log-probabilities are told."""
        self._id, self._about, self._usage, self._calls, self._texts = id, about, usage, calls, texts
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._told, self._events = [], 0
        self._last: Token | None = None

    def start(self) -> Iterator[Event]:
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())

    def push(self, _index: int, token: Token) -> Iterator[Event]:
        """Events; there is one answer alone."""
        self._usage.push(0, token)
        self._last = token = self._calls.push(token)
        if self._texts is not None:
            self._told += self._texts.judged(token)
        yield from self._grow("reasoning", token.thinking)
        yield from self._grow("message", token.text)
        for call in token.tool_calls:
            yield from self._call(call)
        if token.finish_reason is not None:
            yield from self._close()
            kind = "response.incomplete" if token.finish_reason == "length" else "response.completed"
            yield self._event(kind, response=self.response())

    def response(self) -> dict[str, Any]:
        """The response as far as it has come."""
        last = self._last
        reason = None if last is None else last.finish_reason
        status = "in_progress" if reason is None else "incomplete" if reason == "length" else "completed"
        counts = self._usage.counts()
        usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }
        return {
            "id": self._id,
            "object": "response",
            **self._about,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [_copy(item) for item in self._output],
            "usage": None if reason is None else usage,
            **self._usage.figures(),
        }

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        """More text of a kind, in the open item or in a new one."""
        if not text:
            return
        if self._open != kind:
            yield from self._begin(kind)
        part, told = self._output[-1]["content"][0], self._told
        part["text"] += text
        place = self._place() | {"delta": text}
        if kind == "message":
            place["logprobs"], self._told = told, []
            if self._texts is not None:
                part["logprobs"] += told
        yield self._event(f"response.{PARTS[kind]}.delta", **place)

    def _begin(self, kind: str) -> Iterator[Event]:
        yield from self._close()
        self._open, prefix = kind, {"message": "msg", "reasoning": "rs"}[kind]
        item: dict[str, Any] = {"id": self._item_id(prefix), "type": kind, "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == "message" else {"summary": []}
        self._output.append(item)
        yield self._event("response.output_item.added", output_index=self._at, item=_copy(item))
        part: dict[str, Any] = {"type": PARTS[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        item["content"].append(part)
        yield self._event("response.content_part.added", **self._place(), part=_copy(part))

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        kind, self._open = self._open, None
        item = self._output[-1]
        (part,) = item["content"]
        item["status"] = "incomplete" if self._last and self._last.finish_reason == "length" else "completed"
        done = self._place() | {"text": part["text"]} | ({"logprobs": part["logprobs"]} if kind == "message" else {})
        yield self._event(f"response.{PARTS[kind]}.done", **done)
        yield self._event("response.content_part.done", **self._place(), part=_copy(part))
        yield self._event("response.output_item.done", output_index=self._at, item=_copy(item))

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._close()
        item = {
            "id": self._item_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call.id,
            "name": call.name, "arguments": "",
        }  # fmt: skip
        self._output.append(item)
        yield self._event("response.output_item.added", output_index=self._at, item=_copy(item))
        item |= {"arguments": call.arguments, "status": "completed"}
        where, name = {"item_id": item["id"], "output_index": self._at}, "response.function_call_arguments"
        yield self._event(f"{name}.delta", **where, delta=call.arguments)
        yield self._event(f"{name}.done", **where, arguments=call.arguments, name=call.name)
        yield self._event("response.output_item.done", output_index=self._at, item=_copy(item))

    @property
    def _at(self) -> int:
        return len(self._output) - 1

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id.partition('_')[2]}{len(self._output)}"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": self._at, "content_index": 0}

    def _event(self, type: str, **fields: Any) -> Event:
        self._events += 1
        return {"type": type, "sequence_number": self._events - 1, **fields}


def _copy(value: Any) -> Any:
    """Of an item or a part, as it is now."""
    if isinstance(value, Mapping):
        return {name: _copy(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_copy(each) for each in value]
    return value
