"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.errors import InputError
from lapinfer.serve.answers import Answer, answer_of, told
from lapinfer.serve.chat_answer import ChatAnswer, Choice
from lapinfer.serve.encoding import Json
from lapinfer.serve.errors import ApiError
from lapinfer.serve.forced_calls import Calls, check_told
from lapinfer.serve.marks import Marks, marks_of
from lapinfer.serve.models import Served
from lapinfer.serve.openai_chunks import chunks
from lapinfer.serve.openai_fields import Sampled
from lapinfer.serve.openai_messages import answer_options, forced_of, is_begun, messages_of, schema_of, tools_of
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.sse import EventStream
from lapinfer.serve.state import State
from lapinfer.text.generation import Request, Token


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
        tools, schema = tools_of(self.tools or []), schema_of("response_format", self.response_format, "json_schema")
        return options | answer_options(
            tools=tools, choice=self.tool_choice, schema=schema, continues=self.continues(),
            effort=self.reasoning_effort, variables=self.chat_template_kwargs,
        )  # fmt: skip

    def continues(self) -> bool:
        """Whether the last message is gone on with."""
        if self.continue_final_message is not None:
            return self.continue_final_message
        if self.add_generation_prompt is False:
            raise InputError("add_generation_prompt: an answer begins with it; or set continue_final_message to true")
        return is_begun(self.messages)


async def completions(state: State, http: HttpRequest) -> Response:
    """POST /v1/chat/completions."""
    body = await state.body(http, ChatBody)
    answer = await answer_of(state, http, body.model, lambda served: _requests(served, body), count=body.choices)
    reply = _reply(body, answer, marks_of(http))
    if body.stream:
        return EventStream(chunks(reply, answer, usage=body.tells_usage), answer)
    await told(answer, http, reply.push)
    return Json(reply.whole())


def _requests(served: Served, body: ChatBody) -> list[Request]:
    messages, options = messages_of(body.messages), body.options()
    check_told(served.model, options)
    return [
        served.model.chat_request(messages, seed=body.seed_of(i), **options) for i in range(body.choices)
    ]  # each has a grammar of its own


def _reply(body: ChatBody, answer: Answer[Token], marks: Marks) -> ChatAnswer:
    id, single = f"chatcmpl-{marks.id}", body.parallel_tool_calls is False
    forced = bool(forced_of(body.tool_choice, tools_of(body.tools or [])))
    choices = [Choice(i, Calls(f"{id} {i}", forced=forced, single=single)) for i in range(body.choices)]
    served = answer.lease.served
    usage = Usage([len(answer.tickets[0].request.prompt)], tells_work=marks.tells_work)
    texts = served.texts if body.logprobs else None
    return ChatAnswer(id, marks.created, served.name, choices, usage, texts)
