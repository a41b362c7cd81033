"""A replica: the application of serve/ in an actor of Ray Serve's, which requests reach as data and not by a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from lapinfer.cluster.copies import Held, Offer, held
from lapinfer.errors import LapinferError
from lapinfer.loading import memory_needed
from lapinfer.machine import keep_one_heap
from lapinfer.options import LoadOptions, ServeOptions
from lapinfer.parallel import started
from lapinfer.serve.app import application
from lapinfer.serve.models import Models
from lapinfer.serve.state import State
from lapinfer.text.language_model import LanguageModel, open_model

FLUSHED = 5.0
"""Seconds that an application has to end after its client has left."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of HTTP: what an ASGI scope has of it, and its body."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    body: bytes

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": self.method,
            "path": self.path, "raw_path": self.path.encode(), "query_string": self.query, "root_path": "",
            "headers": list(self.headers), "client": self.client, "server": None,
        }  # fmt: skip


class Replica:
    """What Ray Serve runs. offers: by the names that clients use; the first model is loaded at once, others later.

    owner: an actor that lives as long as who has started all this; after its end the whole service goes.
    """

    def __init__(
        self, service: str, offers: Mapping[str, Offer], loading: LoadOptions, serving: ServeOptions, owner: Any
    ) -> None:
        keep_one_heap()
        self._service, self._owner, self._held = service, owner, dict[str, Held]()
        memory = None if serving.memory is None else int(serving.memory * 1e9)
        self._models = Models(
            {name: name for name in offers}, loading, open=self._open, size=self._size, memory=memory,
            queue=serving.queue, seconds=serving.timeout,
        )  # fmt: skip
        self._offers, self._state = offers, State(serving, self._models)
        self._app = application(self._state, guarded=False)
        self._error: LapinferError | None = None
        started(self._end_with_owner, name="lapinfer-owner")
        try:
            first = next(iter(offers))
            self._models.put(first, self._open(first, loading))
        except LapinferError as error:
            self._error = error

    def failure(self) -> LapinferError | None:
        """Why this replica cannot answer. Ray would start one that fails again and again, and tell of it at length."""
        return self._error

    def _here(self, name: str, options: LoadOptions) -> Held:
        if name not in self._held:
            self._held[name] = held(self._offers[name], options)
        return self._held[name]

    def _open(self, name: str, options: LoadOptions) -> LanguageModel:
        here = self._here(name, options)
        return open_model(here.path, here.options)

    def _size(self, name: str, options: LoadOptions) -> int:
        here = self._here(name, options)
        return memory_needed(here.path, here.options)

    async def answer(self, asked: Asked, prompt: tuple[int, ...] = ()) -> AsyncIterator[list[Message]]:
        """The application's messages, as many at a time as there are. prompt: is for the router (routing.py)."""
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        read = False

        async def receive() -> Message:
            nonlocal read
            if read:
                await asyncio.get_running_loop().create_future()  # who leaves cancels this answer
            read = True
            return {"type": "http.request", "body": asked.body, "more_body": False}

        running = asyncio.create_task(self._app(asked.scope(), receive, told.put))  # type: ignore[arg-type]
        running.add_done_callback(lambda task: told.put_nowait(None))
        try:
            ended = False
            while not ended:
                messages = [await told.get()]
                while not told.empty():
                    messages.append(told.get_nowait())
                ended = messages[-1] is None
                if found := [message for message in messages if message is not None]:
                    yield found
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await asyncio.wait_for(running, FLUSHED)

    def metrics(self) -> tuple[str, str]:
        """(this replica's name, what it has counted)."""
        from ray import serve

        return serve.get_replica_context().replica_id.unique_id, self._state.metrics.exposition().decode()

    def _end_with_owner(self) -> None:
        """Waits, in a thread: a call within a request would be cancelled with it."""
        import ray
        from ray import serve
        from ray.exceptions import RayActorError, RayError

        while True:
            try:
                ray.get(self._owner.alive.remote())
            except RayActorError:
                serve.delete(self._service, _blocking=False)
                return
            except RayError:
                time.sleep(1)


class Owner:
    """Lives in the job that has started a service, and ends with it, however that ends."""

    async def alive(self) -> None:
        """Never returns."""
        await asyncio.get_running_loop().create_future()
