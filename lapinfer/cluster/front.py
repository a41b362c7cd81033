"""The one endpoint: what clients reach. It checks requests, hands them to replicas, and passes on what these say.

It runs in the process of `lapinfer serve`, with serve's own server: who dawdles, floods or comes from another site is
met as without a cluster, and what reaches a replica is a request that was read whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from ray.exceptions import RayError, RayTaskError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from lapinfer.cluster.prefixes import blocks
from lapinfer.cluster.replica import Asked
from lapinfer.cluster.routing import PROMPT
from lapinfer.options import ServeOptions
from lapinfer.serve.app import guards
from lapinfer.serve.encoding import Json
from lapinfer.serve.errors import ANTHROPIC, LOG, ApiError, api_error, response_to
from lapinfer.serve.limits import read_body
from lapinfer.serve.sse import event

TRIES = 3
"""Replicas that a request may come to one after the other, as long as none has begun to answer."""
LATER = {"Retry-After": "5"}
LOST = "the replica that answered has ended; ask again"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(slots=True)
class Front:
    """What the endpoint needs. handle: Ray Serve's, of the replicas. draining: it ends, and takes nothing new."""

    options: ServeOptions
    handle: Any
    draining: bool = False

    def application(self) -> Starlette:
        """What uvicorn runs."""
        app = Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/{path:path}", self._passed_on, methods=METHODS),
            ],
            middleware=guards(self.options),
        )
        app.router.redirect_slashes = False
        return app

    async def _health(self, http: Request) -> Response:
        if self.draining:
            return response_to(ApiError(503, "the server ends"), http.url.path)
        return Json({"status": "ok"})

    async def _metrics(self, http: Request) -> Response:
        try:
            told = await self._of_all("metrics")
        except RayError as error:
            LOG.error("a replica did not tell its metrics: %s", error)
            return response_to(ApiError(503, LOST, headers=LATER), http.url.path)
        registry = CollectorRegistry()
        registry.register(_Told(told))
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _of_all(self, method: str) -> list[Any]:
        return await asyncio.to_thread(lambda: self.handle.broadcast(method).results(timeout_s=30))

    async def _passed_on(self, http: Request) -> Response:
        try:
            body = await read_body(http, int(self.options.body * 1e6))
        except Exception as error:
            return response_to(error, http.url.path)
        scope = http.scope
        headers, client = tuple((bytes(k), bytes(v)) for k, v in scope["headers"]), scope.get("client")
        asked = Asked(
            scope["method"], scope["path"], scope["query_string"], headers, tuple(client) if client else None, body
        )
        return Passed(self.handle, asked, self.options.timeout)


class Passed(Response):
    """An answer that comes from a replica; it is told there when the client leaves."""

    def __init__(self, handle: Any, asked: Asked, seconds: float) -> None:
        super().__init__()
        self._handle, self._asked, self._seconds = handle, asked, seconds
        self._begun = self._is_stream = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        telling, watching = asyncio.create_task(self._tell(scope, receive, send)), asyncio.create_task(gone())
        try:
            await asyncio.wait((telling, watching), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            for task in (telling, watching):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(telling, watching, return_exceptions=True)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._messages()) as messages:
                async for message in messages:
                    if message["type"] == "http.response.start":
                        self._begun = True
                        self._is_stream = _is_stream(message["headers"])
                    await send(message)
        except Exception as error:
            if not self._begun:
                await response_to(error, scope["path"])(scope, receive, send)
                return
            if not self._is_stream:
                raise  # the connection ends before the body does, which tells
            named = "error" if scope["path"].startswith(ANTHROPIC) else None
            told = event(api_error(error).body(scope["path"]), named).encode()
            await send({"type": "http.response.body", "body": told, "more_body": False})

    async def _messages(self) -> AsyncGenerator[Message, None]:
        """Those of a replica; of another one, where one ends before it has said anything."""
        prompt = await asyncio.to_thread(blocks, self._asked.body) if self._asked.method == "POST" else ()
        for left in reversed(range(TRIES)):
            coming = self._handle.options(stream=True).answer.remote(self._asked, **{PROMPT: prompt})
            try:
                async for messages in _first_in_time(coming, self._seconds):
                    for message in messages:
                        yield message
                coming = None
                return
            except RayTaskError as error:
                raise RuntimeError("a replica failed") from error
            except RayError as error:
                LOG.warning("a replica has ended: %s", type(error).__name__)
                if self._begun or not left:
                    raise ApiError(503, LOST, headers=LATER) from error
            finally:
                if coming is not None:
                    coming.cancel()


async def _first_in_time(coming: Any, seconds: float) -> AsyncIterator[list[Message]]:
    """What comes; ApiError where nothing begins to, as no replica is there."""
    try:
        async with asyncio.timeout(seconds + 1):  # the replica itself has a bound, which comes first
            first = await anext(coming)
    except StopAsyncIteration:
        raise ApiError(503, LOST, headers=LATER) from None
    except TimeoutError:
        raise ApiError(503, "no replica is ready", headers=LATER) from None
    yield first
    async for each in coming:
        yield each


def _is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and b"event-stream" in value for name, value in headers)


class _Told(Collector):
    """What replicas have counted, with a label of whose it is."""

    def __init__(self, told: Iterable[tuple[str, str]]) -> None:
        self._told = told

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._told:
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    known.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value, sample.timestamp)
        return families.values()
