"""Answers as Anthropic's clients read them: a message, or the events that a message grows by.

Source: the events and types of Anthropic's Python client (anthropic.types.raw_message_stream_event).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lapinfer.serve.anthropic_request import Asked
from lapinfer.serve.figures import figures
from lapinfer.serve.forced_calls import Calls
from lapinfer.text.generation import Token
from lapinfer.text.tool_calls import ToolCall

Event = dict[str, Any]
PING: Event = {"type": "ping"}
"""Says that the answer still comes."""


class Reply:
    """One message, told by its tokens: `start()`, then `push` for each; the last one ends it.

    Blocks of thinking, text and calls come in the order in which the model says them. `message()` is what all events
    make together; the last events have figures of ours besides. prompt: how many tokens the request has. tells_work:
    as in `Marks`.
    """

    def __init__(self, id: str, asked: Asked, prompt: int, *, tells_work: bool = True) -> None:
        self._id, self._asked, self._prompt, self._tells_work = id, asked, prompt, tells_work
        self._content: list[dict[str, Any]] = []
        self._open: str | None = None
        self._tokens = self._reused = 0
        self._end: tuple[str | None, str | None] = None, None
        self._figures: dict[str, Any] = {}
        self._calls = Calls(id, forced=asked.forced, single=asked.single)

    def start(self) -> Iterator[Event]:
        yield {"type": "message_start", "message": self.message()}
        yield PING

    def push(self, _index: int, token: Token) -> Iterator[Event]:
        """Events; there is one answer alone."""
        token = self._calls.push(token)
        self._tokens += 1
        self._prompt = token.timings.prompt_tokens
        self._reused = token.timings.reused_tokens if self._tells_work else 0
        yield from self._grow("thinking", token.thinking)
        yield from self._grow("text", token.text)
        for call in token.tool_calls:
            yield from self._call(call)
        if token.finish_reason is not None:
            yield from self._finish(token)

    def message(self) -> dict[str, Any]:
        """The message as far as it has come."""
        reason, sequence = self._end
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": [dict(block) for block in self._content],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self.usage(),
            **self._figures,
        }

    def usage(self) -> dict[str, int]:
        """Tokens: those of the prompt that were still known are counted as read from a cache, and not as input."""
        return {
            "input_tokens": self._prompt - self._reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._reused,
            "output_tokens": self._tokens,
        }

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        """More text of a kind, in the open block or in a new one."""
        if not text:
            return
        if self._open != kind:
            yield from self._begin({"type": "thinking", "thinking": "", "signature": ""} if kind == "thinking"
                                   else {"type": "text", "text": ""})  # fmt: skip
        self._content[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._begin({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        self._content[-1]["input"] = json.loads(call.arguments)
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield from self._close()

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._content.append(block)
        self._open = block["type"]
        yield {"type": "content_block_start", "index": len(self._content) - 1, "content_block": dict(block)}

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open == "thinking":  # clients keep it; there is nothing to sign here
            yield self._delta({"type": "signature_delta", "signature": ""})
        self._open = None
        yield {"type": "content_block_stop", "index": len(self._content) - 1}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _finish(self, last: Token) -> Iterator[Event]:
        yield from self._close()
        self._end = self._reason(last)
        delta = {"stop_reason": self._end[0], "stop_sequence": self._end[1]}
        self._figures = {"lapinfer": figures(last)} if self._tells_work else {}
        yield {"type": "message_delta", "delta": delta, "usage": self.usage(), **self._figures}
        yield {"type": "message_stop"}

    def _reason(self, last: Token) -> tuple[str, str | None]:
        """Why it ended, and at which of the client's stop sequences."""
        if any(block["type"] == "tool_use" for block in self._content):
            return "tool_use", None
        if last.finish_reason == "length":
            limit = self._asked.max_tokens
            return "max_tokens" if limit is None or self._tokens >= limit else "model_context_window_exceeded", None
        if last.finish_reason == "stop_string" and last.stop_string in self._asked.stop:
            return "stop_sequence", last.stop_string
        return "end_turn", None
