"""Anthropic's endpoints: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lapinfer.serve.answers import Answer, answer_of, prepared, whole
from lapinfer.serve.anthropic_answer import PING, Reply
from lapinfer.serve.anthropic_request import Asked, asked
from lapinfer.serve.errors import ApiError
from lapinfer.serve.forced_calls import check_told
from lapinfer.serve.limits import read_body
from lapinfer.serve.models import Served
from lapinfer.serve.sse import EventStream, event
from lapinfer.serve.state import State
from lapinfer.text.generation import Request, Token

SECONDS_OF_SILENCE = 10.0
"""After which a ping tells that the answer still comes."""


async def messages(state: State, http: HttpRequest) -> Response:
    """POST /v1/messages: a message, or its events."""
    read = await _asked(state, http)
    answer = await answer_of(state, http, read.model, lambda served: [_request(served, read)])
    reply = Reply(f"msg_{secrets.token_hex(12)}", read, len(answer.tickets[0].request.prompt))
    if read.stream:
        return EventStream(_events(reply, answer), answer, error_name="error")
    (tokens,) = await whole(answer, http)
    for token in tokens:
        for _ in reply.push(token):
            pass
    return JSONResponse(reply.message())


async def count_tokens(state: State, http: HttpRequest) -> Response:
    """POST /v1/messages/count_tokens: how many tokens the model would read."""
    read = await _asked(state, http, counting=True)
    with await state.models.lease(read.model) as served:
        request = await prepared(lambda: _request(served, read))
    return JSONResponse({"input_tokens": len(request.prompt)})


def _request(served: Served, read: Asked) -> Request:
    check_told(served.model, read.options)
    return served.model.chat_request(read.messages, **read.options)


async def _asked(state: State, http: HttpRequest, *, counting: bool = False) -> Asked:
    data = await read_body(http, int(state.options.body * 1e6))
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    return await prepared(lambda: asked(body, counting=counting))


async def _events(reply: Reply, answer: Answer[Token]) -> AsyncIterator[str]:
    yield "".join(event(each, each["type"]) for each in reply.start())
    async for tokens in _or_silence(answer):
        events = [each for token in tokens for each in reply.push(token)] if tokens else [PING]
        if events:
            yield "".join(event(each, each["type"]) for each in events)


async def _or_silence(answer: Answer[Token]) -> AsyncIterator[list[Token]]:
    """Tokens, all that have come at a time; an empty list whenever none has come for a while."""
    came: list[Token] = []
    changed = asyncio.Event()

    async def collect() -> None:
        try:
            async for _, token in answer.events():
                came.append(token)
                changed.set()
        finally:
            changed.set()

    collecting = asyncio.create_task(collect())
    try:
        while not collecting.done() or came:
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_OF_SILENCE):
                    await changed.wait()
            changed.clear()
            tokens, came[:] = came[:], []
            if tokens or not collecting.done():
                yield tokens
        await collecting  # raises what has ended the answer before its end
    finally:
        collecting.cancel()
