"""What a caller gets of a request that somebody else runs: its tokens as they come, for threads and for event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from lapinfer.errors import InputError
from lapinfer.text.completion import Completion, completed
from lapinfer.text.generation import Token
from lapinfer.text.shared_steps import Asked, Event

E = TypeVar("E", bound=Event)


class Ticket(Generic[E]):
    """The tokens of one request, or its one embedding, each given out once: `for token in ticket`, or `async for`.

    Iteration waits for the next token, and ends after the last one, or once the ticket is cancelled; it raises what
    has ended the request before its end. As a context manager it is cancelled where the block is left.
    """

    def __init__(self, request: Asked[E], client: str, since: float, cancel: Callable[[Ticket[E]], None]) -> None:
        self.request, self.client, self.since = request, client, since
        self._cancel = cancel
        self._changed = threading.Condition()
        self._tokens: deque[E] = deque()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._error: BaseException | None = None
        self.ended = self.cancelled = False

    def cancel(self) -> None:
        """Ask for no more: it leaves the steps of the model, and its slot is free, before the next one begins."""
        with self._changed:
            if self.ended:
                return
            self.cancelled = self.ended = True
            self._tokens.clear()
            self._wake()
        self._cancel(self)

    def result(self: Ticket[Token]) -> Completion:
        """The whole answer, once it is there; InputError where its last token was taken, or it was cancelled."""
        events = list(self)
        if not events or events[-1].finish_reason is None:
            raise InputError("there is no whole answer: the request was cancelled, or its tokens were taken before")
        return completed(events)

    def push(self, token: E) -> None:
        """Called by who runs the request: its next token."""
        with self._changed:
            if not self.ended:
                self._tokens.append(token)
                self._wake()
        if token.finish_reason is not None:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Called by who runs the request: nothing more comes."""
        with self._changed:
            if not self.ended:
                self.ended, self._error = True, error
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for loop, future in self._sleepers:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(_done, future)
        self._sleepers = []

    def _next(self) -> E | None:
        """The next token, None where there is none yet; StopIteration or the error after the last one."""
        if self._tokens:
            return self._tokens.popleft()
        if self.ended:
            raise self._error or StopIteration
        return None

    def __iter__(self) -> Iterator[E]:
        return self

    def __next__(self) -> E:
        with self._changed:
            while (token := self._next()) is None:
                self._changed.wait()
            return token

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                try:
                    token = self._next()
                except StopIteration:
                    raise StopAsyncIteration from None
                if token is not None:
                    return token
                future = loop.create_future()
                self._sleepers.append((loop, future))
            await future

    def __enter__(self) -> Ticket[E]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
