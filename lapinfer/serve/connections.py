"""Connections whose other side keeps to HTTP: what is none gets an error that clients can read, and nobody dawdles."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lapinfer.serve.errors import ApiError

SECONDS_OF_HEAD = 15.0
"""In which the head of a request must have come, from its first byte or from when a connection was made."""


class Connection(H11Protocol):
    """uvicorn's, which waits without an end for the head of a first request, for the rest of a later one's, and for
    what remains of a body whose answer has ended.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(SECONDS_OF_HEAD, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(SECONDS_OF_HEAD, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        """Tell what was sent that it is no HTTP, and close; a request that runs is as one whose client has left."""
        body = json.dumps(ApiError(400, "the request is not HTTP/1.1").body("")).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
