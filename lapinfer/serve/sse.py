"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): answers that grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from lapinfer.serve.answers import Answer
from lapinfer.serve.encoding import encoded
from lapinfer.serve.errors import api_error
from lapinfer.text.generation import Token

SECONDS_OF_SILENCE = 15.0
"""After which something goes out, so that nothing on the way takes the connection for dead: prompts take their time."""
LEAST_SECONDS = 1.0
"""Between two looks."""
COMMENT = ":\n\n"
DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: Any, name: str | None = None) -> str:
    """One event; `name` is its type, where the protocol has these."""
    text = encoded(data).decode()
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


class Growing(Protocol):
    """A reply that is told in parts: those before the first token, and those of each."""

    def start(self) -> Iterator[dict[str, Any]]: ...

    def push(self, index: int, token: Token, /) -> Iterator[dict[str, Any]]: ...


async def typed_events(reply: Growing, answer: Answer[Token]) -> AsyncIterator[str]:
    """All of an answer whose parts have types; what a token brings is one write."""
    yield "".join(event(each, each["type"]) for each in reply.start())
    async for index, token in answer.events():
        if told := "".join(event(each, each["type"]) for each in reply.push(index, token)):
            yield told


class EventStream(StreamingResponse):
    """Events of an answer, which is cancelled at their end, however that comes: the client may leave at any time.

    What fails after the first event is told as one more, whose data is the error's body. silence: what goes out where
    nothing else does for a while.
    """

    def __init__(
        self, events: AsyncIterator[str], answer: Answer[Any], *, error_name: str | None = None, silence: str = COMMENT
    ) -> None:
        super().__init__(self._told(events, error_name), headers=HEADERS, media_type="text/event-stream")
        self._answer, self._path, self._silence = answer, "", silence.encode()

    async def _told(self, events: AsyncIterator[str], error_name: str | None) -> AsyncIterator[str]:
        try:
            async for each in events:
                yield each
        except Exception as error:
            yield event(api_error(error).body(self._path), error_name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._path = scope["path"]
        loop, last = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        more = False

        async def noted(message: Message) -> None:
            nonlocal last, more
            last, more = loop.time(), message.get("more_body", True)
            await send(message)

        async def break_silence() -> None:
            while True:
                await asyncio.sleep(max(LEAST_SECONDS, last + SECONDS_OF_SILENCE - loop.time()))
                if more and loop.time() - last >= SECONDS_OF_SILENCE:
                    await noted({"type": "http.response.body", "body": self._silence, "more_body": True})

        breaking = asyncio.create_task(break_silence())
        try:
            await super().__call__(scope, receive, noted)
        finally:
            breaking.cancel()
            self._answer.cancel()
