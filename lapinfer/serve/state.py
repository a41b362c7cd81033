"""What all routes of a server share, and how a route is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lapinfer.options import ServeOptions
from lapinfer.serve.errors import response_to
from lapinfer.serve.limits import read_body
from lapinfer.serve.metrics import Metrics
from lapinfer.serve.models import Models


@dataclass(slots=True)
class State:
    """Given to every endpoint, `async def endpoint(state: State, request: Request) -> Response`:

        body = await state.body(request, Schema)         # read within the limits, checked: a `Body` of one's own
        lease = await state.models.lease(body.model)     # lease.served: name, model (LanguageModel), scheduler
        with lease: …                                    # or lease.release(), when the answer has ended
        answer = await answers.submitted(state, lease, [Request, …], http=request)
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
    """A request's JSON. Fields that are not declared are ignored; those that are must have their type, no other that
    could be made into it.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=BaseModel)
Endpoint = Callable[[State, Request], Awaitable[Response]]


def route(state: State, method: str, path: str, endpoint: Endpoint) -> Route:
    """A route whose errors are answers."""
    return Route(path, partial(_answered, state, endpoint), methods=[method])


async def _answered(state: State, endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(state, request)
    except Exception as error:
        return response_to(error, request.url.path)
