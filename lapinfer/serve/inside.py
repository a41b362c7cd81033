"""Requests of this process: the answers that clients get, without a socket."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Message

from lapinfer.serve.app import ROUTES
from lapinfer.serve.marks import Marks
from lapinfer.serve.state import State, answered

POSTED = {path: endpoint for method, path, endpoint in ROUTES if method == "POST"}


async def post(state: State, path: str, body: bytes, marks: Marks) -> tuple[int, bytes]:
    """(status, body) of the whole answer to a POST of a path that the server has; errors are answers, too.

    Cancelled, it ends what it has asked of the model. A body must not ask for a stream.
    """

    async def parts() -> Message:
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.get_running_loop().create_future()  # who asks in the process does not leave

    sent: list[bool] = []
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "client": None}
    response = await answered(state, POSTED[path], Request(scope | marks.in_scope(), parts))
    return response.status_code, bytes(response.body)
