"""Requests on a model's scheduler: what they bring, in the order in which it comes, until the client leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from lapinfer.errors import InputError, LapinferError, QueueFullError
from lapinfer.serve.errors import LOG, ApiError
from lapinfer.serve.models import Lease, Served
from lapinfer.serve.state import State
from lapinfer.text.shared_steps import Asked, Event
from lapinfer.text.ticket import Ticket

T = TypeVar("T")
E = TypeVar("E", bound=Event)
CHOICES = 16
"""Answers that one request may ask for."""


class Answer(Generic[E]):
    """What one HTTP request has asked of a model: `events` gives tokens, and `cancel` frees what they need."""

    def __init__(self, state: State, lease: Lease, tickets: Sequence[Ticket[E]]) -> None:
        self.lease, self.tickets = lease, tickets
        self._state = state
        self._late = self._ended = False
        self._made = 0
        self._began = perf_counter()
        seconds = state.options.timeout
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._late = True
        for ticket in self.tickets:
            ticket.cancel()

    def cancel(self) -> None:
        """Nobody listens any more, or all has been said: what still runs ends within a step, the model may leave."""
        self._timer.cancel()
        if not self._ended:
            self._ended = True
            read, seconds = sum(len(ticket.request.prompt) for ticket in self.tickets), perf_counter() - self._began
            LOG.info("%s: %d tokens after %d in %.2f s", self.lease.served.name, self._made, read, seconds)
        for ticket in self.tickets:
            ticket.cancel()
        self.lease.release()

    async def events(self) -> AsyncIterator[tuple[int, E]]:
        """(index of its request, token) as they come. ApiError where the time is over, or the server ends."""
        if len(self.tickets) == 1:
            async for token in self._tokens(self.tickets[0]):
                yield 0, token
            return
        queue: asyncio.Queue[tuple[int, E] | BaseException | None] = asyncio.Queue()

        async def pump(index: int, ticket: Ticket[E]) -> None:
            try:
                async for token in self._tokens(ticket):
                    queue.put_nowait((index, token))
            except Exception as error:
                queue.put_nowait(error)
            else:
                queue.put_nowait(None)

        pumps = [asyncio.create_task(pump(index, ticket)) for index, ticket in enumerate(self.tickets)]
        try:
            left = len(pumps)
            while left:
                match await queue.get():
                    case None:
                        left -= 1
                    case BaseException() as error:
                        raise error
                    case event:
                        yield event
        finally:
            for each in pumps:
                each.cancel()

    async def _tokens(self, ticket: Ticket[E]) -> AsyncIterator[E]:
        metrics, name, finished, last = self._state.metrics, self.lease.served.name, False, None
        try:
            async for token in ticket:
                now = perf_counter()
                metrics.event(name, token, None if last is None else now - last)
                self._made += 1
                finished, last = token.finish_reason is not None, now
                yield token
        except InputError:
            raise
        except LapinferError as error:
            if not self._state.draining:
                raise
            raise _ends() from error
        if not finished and self._late:
            once = {"X-Should-Retry": "false"}  # the official clients would ask twice more, for as long each
            message = f"the answer was not ready within {self._state.options.timeout:g} s"
            raise ApiError(504, message, code="timeout", headers=once)
        if not finished:
            raise _ends()


def _ends() -> ApiError:
    return ApiError(503, "the server ends", headers={"Retry-After": "5"})


async def prepared(make: Callable[[], T]) -> T:
    """What takes long, beside the loop: templates, tokens, grammars."""
    return await asyncio.to_thread(make)


async def answer_of(
    state: State, http: HttpRequest, model: str | None, make: Callable[[Served], Sequence[Asked[E]]], *, count: int = 1
) -> Answer[E]:
    """What `make` asks of a model, `count` requests, waiting for their turns. The model stays until `Answer.cancel`.

    ApiError for more than may ever wait, before one is made; QueueFullError where there is no place for all now.
    """
    lease = await state.models.lease(model)
    try:
        most = state.options.queue + lease.served.model.model.slots
        if count > most:
            raise ApiError(400, f"{count} answers at once are asked for, and there is room for {most}: ask for fewer")
        return _submitted(state, lease, await prepared(lambda: make(lease.served)), client_of(http))
    except BaseException:
        lease.release()
        raise


def _submitted(state: State, lease: Lease, requests: Sequence[Asked[E]], client: str) -> Answer[E]:
    if state.draining:
        raise _ends()
    tickets: list[Ticket[E]] = []
    try:
        for request in requests:
            tickets.append(lease.served.scheduler.submit(request, client=client))
    except BaseException as error:
        for ticket in tickets:
            ticket.cancel()
        if isinstance(error, QueueFullError):
            state.metrics.refused(lease.served.name)
        raise
    return Answer(state, lease, tickets)


def client_of(http: HttpRequest) -> str:
    """Who asks, for fair turns: programs on one computer are told apart by what they call themselves."""
    host = http.client.host if http.client is not None else ""
    return f"{host} {http.headers.get('user-agent', '')[:200]}"


async def whole(answer: Answer[E], http: HttpRequest) -> list[list[E]]:
    """All tokens of each request; ClientDisconnect where the client leaves before."""
    tokens: list[list[E]] = [[] for _ in answer.tickets]

    async def collect() -> None:
        async for index, token in answer.events():
            tokens[index].append(token)

    try:
        await unless_left(http, collect())
    finally:
        answer.cancel()
    return tokens


async def told(answer: Answer[E], http: HttpRequest, push: Callable[[int, E], Iterable[object]]) -> None:
    """Tell a reply, which is to be whole, all tokens; what its `push` gives is for streams."""
    for index, tokens in enumerate(await whole(answer, http)):
        for token in tokens:
            deque(push(index, token), maxlen=0)


async def unless_left(http: HttpRequest, work: Awaitable[T]) -> T:
    """What `work` gives; ClientDisconnect, and an end to it, when the client leaves."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
