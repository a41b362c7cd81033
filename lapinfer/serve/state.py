"""What all routes of a server share, and how a route is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lapinfer.options import ServeOptions
from lapinfer.serve.errors import ApiError, response_to
from lapinfer.serve.limits import read_body
from lapinfer.serve.metrics import Metrics
from lapinfer.serve.models import Models


@dataclass(slots=True)
class State:
    """Given to every endpoint, `async def endpoint(state: State, request: Request) -> Response`:

        body = await state.body(request, Schema)         # read within the limits, checked: a `Body` of one's own
        with await state.models.lease(body.model) as m:  # name, model (LanguageModel), scheduler
        answer = await answers.answer_of(state, request, body.model, lambda m: [m.model.request(…), …])
        async for index, token in answer.events(): …     # answer.cancel() at the end, or when nobody listens
        return sse.EventStream(lines, answer)            # … which does that itself

    Errors are raised: ApiError, or any LapinferError; `route` makes answers of them, in the words of the protocol.
    metrics: counters for /metrics. draining: the server ends, and takes nothing new.
    """

    options: ServeOptions
    models: Models
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False

    async def body(self, request: Request, schema: type[B]) -> B:
        """The request's JSON, checked; ApiError or pydantic's ValidationError says what is wrong with it."""
        return schema.model_validate_json(await read_body(request, int(self.options.body * 1e6)))


class Body(BaseModel):
    """A request's JSON. Fields must have their type, no other that could be made into it.

    `ignored` are the protocol's other fields that change no answer here. Those that would are `refused`, but with the
    values that ask for nothing; so are fields that nobody knows, as a misspelt one would be obeyed by nobody.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            if value is None or name in cls.model_fields or name in cls.ignored:
                continue
            if name not in cls.refused:
                close = get_close_matches(name[:100], (*cls.model_fields, *cls.ignored, *cls.refused), 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ApiError(400, f"{name[:100]}: this server knows no such field{hint}", param=name[:100])
            if value not in cls.refused[name]:
                raise ApiError(400, f"{name}: this server cannot do that", param=name, code="unsupported_parameter")
        return given


Ids = Annotated[list[int], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
"""Lists of which the first wrong item is an error, and not each: of a body of null, those take gigabytes."""
B = TypeVar("B", bound=BaseModel)
Endpoint = Callable[[State, Request], Awaitable[Response]]


def route(state: State, method: str, path: str, endpoint: Endpoint) -> Route:
    """A route whose errors are answers."""
    return Route(path, partial(answered, state, endpoint), methods=[method])


async def answered(state: State, endpoint: Endpoint, request: Request) -> Response:
    """What an endpoint answers; its errors in the words of the protocol."""
    try:
        return await endpoint(state, request)
    except Exception as error:
        return response_to(error, request.url.path)
