"""The chunks that OpenAI's completions grow by, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from lapinfer.serve.answers import Answer
from lapinfer.serve.sse import DONE, Growing, event
from lapinfer.text.generation import Token


class Counted(Growing, Protocol):
    """Of which the last part tells the numbers."""

    def last(self) -> dict[str, Any]: ...


async def chunks(reply: Counted, answer: Answer[Token], *, usage: bool) -> AsyncIterator[str]:
    """All of an answer; usage: with the numbers."""
    for chunk in reply.start():
        yield event(chunk)
    async for index, token in answer.events():
        for chunk in reply.push(index, token):
            yield event(chunk)
    if usage:
        yield event(reply.last())
    yield DONE
