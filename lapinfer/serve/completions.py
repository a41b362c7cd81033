"""OpenAI's /v1/completions: texts that are continued as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lapinfer.errors import InputError
from lapinfer.serve.answers import Answer, answer_of, told
from lapinfer.serve.completion_answer import CompletionAnswer, Continuation
from lapinfer.serve.encoding import Json
from lapinfer.serve.marks import Marks, marks_of
from lapinfer.serve.models import Served
from lapinfer.serve.openai_chunks import chunks
from lapinfer.serve.openai_fields import Prompts, Sampled, prompts_of
from lapinfer.serve.openai_usage import Usage
from lapinfer.serve.sse import EventStream
from lapinfer.serve.state import State
from lapinfer.text.generation import Request, Token

USUAL_TOKENS = 16
"""Of an answer whose length is not asked for, as OpenAI has it."""


class CompletionBody(Sampled):
    """max_tokens: 0 with `echo` tells of the prompt alone. logprobs: of how many of the most likely tokens."""

    refused: ClassVar[Mapping[str, Sequence[Any]]] = {**Sampled.refused, "add_special_tokens": (True,)}

    prompt: Prompts
    echo: bool = False
    logprobs: int | None = None

    @property
    def tells_made(self) -> bool:
        return not (self.echo and self.max_tokens == 0)

    def options(self) -> dict[str, Any]:
        """Options of `LanguageModel.request`, but for the seed."""
        options = self.sampling()
        limit = USUAL_TOKENS if self.max_tokens is None else self.max_tokens
        options["max_tokens"] = limit if self.tells_made else 1
        if self.logprobs is not None:
            options["logprobs"] = self.logprobs or True
            if self.echo:
                options["prompt_logprobs"] = self.logprobs or True
        return options


async def completions(state: State, http: HttpRequest) -> Response:
    """POST /v1/completions."""
    body = await state.body(http, CompletionBody)
    count = len(prompts_of(body.prompt)) * body.choices
    answer = await answer_of(state, http, body.model, lambda served: _requests(served, body), count=count)
    reply = _reply(body, answer, marks_of(http))
    if body.stream:
        return EventStream(chunks(reply, answer, usage=body.tells_usage), answer)
    await told(answer, http, reply.push)
    return Json(reply.whole())


def _requests(served: Served, body: CompletionBody) -> list[Request]:
    """As many for each prompt as answers are wanted."""
    options = body.options()
    if not body.prompt and isinstance(body.prompt, list):
        raise InputError("prompt: expected at least one, got an empty list")
    return [
        served.model.request(prompt, seed=body.seed_of(i), **options)
        for prompt in prompts_of(body.prompt)
        for i in range(body.choices)
    ]


def _reply(body: CompletionBody, answer: Answer[Token], marks: Marks) -> CompletionAnswer:
    count, served, tickets = body.choices, answer.lease.served, answer.tickets
    texts = served.texts if body.logprobs is not None else None
    echoes = [_echo(served, prompt) if body.echo else None for prompt in prompts_of(body.prompt)]
    choices = [Continuation(i, echo=echoes[i // count], texts=texts, made=body.tells_made) for i in range(len(tickets))]
    usage = Usage([len(ticket.request.prompt) for ticket in tickets[::count]], tells_work=marks.tells_work)
    return CompletionAnswer(f"cmpl-{marks.id}", marks.created, served.name, choices, usage)


def _echo(served: Served, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "" if served.model.tokenizer is None else served.model.tokenizer.decode(prompt)
