"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): answers that grow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lapinfer.serve.answers import Answer
from lapinfer.serve.errors import api_error

DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: Any, name: str | None = None) -> str:
    """One event; `name` is its type, where the protocol has these."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


class EventStream(StreamingResponse):
    """Events of an answer, which is cancelled at their end, however that comes: the client may leave at any time.

    What fails after the first event is told as one more, whose data is the error's body.
    """

    def __init__(self, events: AsyncIterator[str], answer: Answer[Any], *, error_name: str | None = None) -> None:
        super().__init__(self._told(events, error_name), headers=HEADERS, media_type="text/event-stream")
        self._answer, self._path = answer, ""

    async def _told(self, events: AsyncIterator[str], error_name: str | None) -> AsyncIterator[str]:
        try:
            async for each in events:
                yield each
        except Exception as error:
            yield event(api_error(error).body(self._path), error_name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._path = scope["path"]
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()
