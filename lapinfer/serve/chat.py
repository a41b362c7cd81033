"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lapinfer.arguments import described
from lapinfer.errors import InputError
from lapinfer.serve.answers import Answer, prepared, submitted, whole
from lapinfer.serve.chat_answer import ChatAnswer, Choice
from lapinfer.serve.errors import ApiError
from lapinfer.serve.forced_calls import call_schema
from lapinfer.serve.models import Lease, Served
from lapinfer.serve.openai_fields import Sampled
from lapinfer.serve.openai_messages import messages_of, tools_of
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.sse import DONE, EventStream, event
from lapinfer.serve.state import State
from lapinfer.text.generation import Request


class ChatBody(Sampled):
    """continue_final_message (vLLM): by default, a last message of the assistant is gone on with (llama-server)."""

    ignored = Sampled.ignored | {"verbosity", "modalities"}
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        **Sampled.refused, "audio": (), "functions": ([],), "function_call": ("none",), "prediction": (),
        "web_search_options": (), "reasoning_format": ("auto", "deepseek"), "chat_template": (),
    }  # fmt: skip

    messages: list[Any]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def forced(self) -> list[dict[str, Any]]:
        """The tools of which one must be called; none where the model decides."""
        tools = tools_of(self.tools or [])
        match self.tool_choice:
            case None | "auto" | "none":
                return []
            case "required":
                chosen = tools
            case {"type": "function", "function": {"name": name}} | {"type": "function", "name": name}:
                chosen = [tool for tool in tools if tool["function"]["name"] == name]
            case other:
                raise InputError(f"tool_choice: expected auto, none, required or a function, got {described(other)}")
        if not chosen:
            raise InputError("tool_choice: a tool must be called that is not among tools")
        return chosen

    def wanted_schema(self) -> Any:
        """What the answer keeps to by `response_format`."""
        format = self.response_format or {"type": "text"}
        match format.get("type"):
            case "text":
                return None
            case "json_object":
                return format.get("schema") or {"type": "object"}
            case "json_schema":
                schema = format.get("json_schema")
                if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
                    return schema["schema"]
                raise InputError("response_format.json_schema.schema: expected a JSON schema")
            case other:
                raise InputError(
                    f"response_format.type: expected text, json_object or json_schema, got {described(other)}"
                )

    def options(self) -> dict[str, Any]:
        """Options of `LanguageModel.chat_request`, but for the seed."""
        options = self.sampling()
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if limit is not None:
            options["max_tokens"] = limit
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: logprobs must be true for it", param="top_logprobs")
        if self.logprobs:
            options["logprobs"] = self.top_logprobs or True
        if self.tools and self.tool_choice != "none":
            options["tools"] = tools_of(self.tools)
        schema, forced = self.wanted_schema(), self.forced()
        if forced and schema is not None:
            raise InputError("tool_choice: a call is forced, so response_format cannot be kept to as well")
        if forced:
            schema = call_schema(forced)
        if schema is not None:
            options["schema"] = schema
        return options | self._of_template()

    def _of_template(self) -> dict[str, Any]:
        """What the chat's template is told."""
        last = self.messages[-1] if self.messages else None
        continues = isinstance(last, dict) and last.get("role") == "assistant" and not last.get("tool_calls")
        if self.continue_final_message is not None:
            continues = self.continue_final_message
        if self.add_generation_prompt is False and not continues:
            raise InputError("add_generation_prompt: an answer begins with it; or set continue_final_message to true")
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":
            variables.setdefault("enable_thinking", False)
        elif self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
        options: dict[str, Any] = {"template_kwargs": variables} if variables else {}
        return options | ({"continue_final_message": True} if continues else {})


async def completions(state: State, http: HttpRequest) -> Response:
    """POST /v1/chat/completions."""
    body = await state.body(http, ChatBody)
    lease = await state.models.lease(body.model)
    try:
        requests = await prepared(lambda: _requests(lease.served, body))
        answer = await submitted(state, lease, requests, http)
    except BaseException:
        lease.release()
        raise
    told = _answer(body, lease, requests)
    if body.stream:
        return EventStream(_chunks(body, told, answer), answer)
    for index, tokens in enumerate(await whole(answer, http)):
        for token in tokens:
            for _ in told.push(index, token):
                pass
    return JSONResponse(told.whole())


def _requests(served: Served, body: ChatBody) -> list[Request]:
    messages, options = messages_of(body.messages), body.options()
    return [
        served.model.chat_request(messages, seed=body.seed_of(i), **options) for i in range(body.choices)
    ]  # each has a grammar of its own


def _answer(body: ChatBody, lease: Lease, requests: list[Request]) -> ChatAnswer:
    id, forced, single = f"chatcmpl-{secrets.token_hex(12)}", bool(body.forced()), body.parallel_tool_calls is False
    choices = [Choice(i, id, forced=forced, single=single) for i in range(len(requests))]
    usage = Usage([len(requests[0].prompt)])
    texts = lease.served.texts if body.logprobs else None
    return ChatAnswer(id, int(time.time()), lease.served.name, choices, usage, texts)


async def _chunks(body: ChatBody, told: ChatAnswer, answer: Answer) -> AsyncIterator[str]:
    for chunk in told.start():
        yield event(chunk)
    async for index, token in answer.events():
        for chunk in told.push(index, token):
            yield event(chunk)
    options = body.stream_options
    if options is not None and options.include_usage:
        yield event(told.last())
    yield DONE
