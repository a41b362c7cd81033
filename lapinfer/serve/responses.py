"""OpenAI's /v1/responses in its plain form: nothing is stored, and tools are the client's own."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.serve.answers import answer_of, told
from lapinfer.serve.encoding import Json
from lapinfer.serve.forced_calls import Calls, check_told
from lapinfer.serve.marks import marks_of
from lapinfer.serve.models import Served
from lapinfer.serve.openai_messages import forced_of
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.responses_answer import Reply
from lapinfer.serve.responses_request import ResponseBody
from lapinfer.serve.sse import EventStream, typed_events
from lapinfer.serve.state import State
from lapinfer.text.generation import Request


async def responses(state: State, http: HttpRequest) -> Response:
    """POST /v1/responses: a response, or its events."""
    body = await state.body(http, ResponseBody)
    answer = await answer_of(state, http, body.model, lambda served: [_request(served, body)])
    served, request = answer.lease.served, cast(Request, answer.tickets[0].request)
    marks = marks_of(http)
    id, forced = f"resp_{marks.id}", bool(forced_of(body.tool_choice, body.known_tools()))
    calls = Calls(id, forced=forced, single=body.parallel_tool_calls is False)
    texts = served.texts if body.tells_logprobs else None
    about = _about(body, served, request) | {"created_at": marks.created}
    usage = Usage([len(request.prompt)], tells_work=marks.tells_work)
    reply = Reply(id, about, usage, calls=calls, texts=texts)
    if body.stream:
        return EventStream(typed_events(reply, answer), answer, error_name="error")
    await told(answer, http, reply.push)
    return Json(reply.response())


def _request(served: Served, body: ResponseBody) -> Request:
    messages, options = body.asked()
    check_told(served.model, options)
    return served.model.chat_request(messages, seed=body.seed_of(0), **options)


def _about(body: ResponseBody, served: Served, request: Request) -> dict[str, Any]:
    """What a response says of what was asked."""
    return {
        "model": served.name,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": False,
        "temperature": request.params.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": request.params.top_p,
        "truncation": "disabled",
    }
