"""Anthropic's endpoints: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.serve.answers import answer_of, prepared, told
from lapinfer.serve.anthropic_answer import PING, Reply
from lapinfer.serve.anthropic_request import Asked, asked
from lapinfer.serve.encoding import Json
from lapinfer.serve.errors import ApiError
from lapinfer.serve.forced_calls import check_told
from lapinfer.serve.limits import read_body
from lapinfer.serve.marks import marks_of
from lapinfer.serve.models import Served
from lapinfer.serve.sse import EventStream, event, typed_events
from lapinfer.serve.state import State
from lapinfer.text.generation import Request


async def messages(state: State, http: HttpRequest) -> Response:
    """POST /v1/messages: a message, or its events."""
    read = await _asked(state, http)
    answer = await answer_of(state, http, read.model, lambda served: [_request(served, read)])
    marks, prompt = marks_of(http), len(answer.tickets[0].request.prompt)
    reply = Reply(f"msg_{marks.id}", read, prompt, tells_work=marks.tells_work)
    if read.stream:
        return EventStream(typed_events(reply, answer), answer, error_name="error", silence=event(PING, "ping"))
    await told(answer, http, reply.push)
    return Json(reply.message())


async def count_tokens(state: State, http: HttpRequest) -> Response:
    """POST /v1/messages/count_tokens: how many tokens the model would read."""
    read = await _asked(state, http, counting=True)
    with await state.models.lease(read.model) as served:
        request = await prepared(lambda: _request(served, read))
    return Json({"input_tokens": len(request.prompt)})


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
