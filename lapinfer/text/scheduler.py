"""The scheduler: requests of many callers, who come and go, in shared steps of one model, run by one thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lapinfer.arguments import described, whole
from lapinfer.errors import InputError, LapinferError, QueueFullError
from lapinfer.parallel import started
from lapinfer.text.decoding import Conversation
from lapinfer.text.embedding import EmbeddingRequest
from lapinfer.text.generation import Request, Token
from lapinfer.text.shared_steps import Asked, Event, Running, SharedSteps
from lapinfer.text.speculation import Speculation
from lapinfer.text.ticket import Ticket
from lapinfer.text.waiting import Waiting

if TYPE_CHECKING:
    from lapinfer.model import Model

E = TypeVar("E", bound=Event)
NEWEST = 0.2
"""Share of the newest request in the mean of how long they have a slot."""


class Served(Protocol):
    """What a scheduler needs of a `LanguageModel`."""

    @property
    def model(self) -> Model: ...

    @property
    def conversations(self) -> Sequence[Conversation]: ...

    @property
    def speculation(self) -> Speculation: ...


@dataclass(frozen=True, slots=True)
class Stats:
    """Requests that have a slot (running) or wait for one, and sums since the beginning.

    tokens: that were chosen. prompt_tokens: that steps have read; besides, reused_tokens were in their slot's cache.
    """

    running: int
    waiting: int
    requests: int
    finished: int
    cancelled: int
    failed: int
    steps: int
    tokens: int
    prompt_tokens: int
    reused_tokens: int


class Scheduler:
    """Runs requests of one model, as many at once as it has slots; the others wait, and clients share slots evenly.

    Each gets the tokens that it would get alone. The model's slots are the scheduler's while it is open: what else runs
    the model meanwhile, `generate` say, would overwrite them. most_waiting: beyond that, `submit` raises
    QueueFullError. Close it before the model; as a context manager it is closed at the end of the block.
    """

    def __init__(self, model: Served, *, most_waiting: int = 256) -> None:
        self._model, self._most = model.model, whole("most_waiting", most_waiting, 0)
        self._changed = threading.Condition()
        self._waiting: Waiting[Ticket[Any]] = Waiting()
        self._cancelled: set[Ticket[Any]] = set()
        self._closing = self._drains = False
        self._steps = SharedSteps(self._model, model.conversations, model.speculation)
        self._tickets: dict[Running, Ticket[Any]] = {}
        self._sums = dict.fromkeys(("requests", "finished", "cancelled", "failed", "steps", "tokens", "reused"), 0)
        self._held = 0.0  # seconds for which a request has a slot
        self._thread = started(self._loop, name="lapinfer-scheduler")
        if self._thread is None:
            raise LapinferError("the system refuses one more thread (ulimit -u, or the container's limit of processes)")

    def submit(self, request: Asked[E], *, client: str = "") -> Ticket[E]:
        """Let a request wait for its turn among the clients.

        QueueFullError where too many wait; InputError for a request of another model, or after `close`.
        """
        given: object = request  # whose type a check would narrow
        if not isinstance(given, Request | EmbeddingRequest):
            raise InputError(f"request: expected what LanguageModel.request gives, got {described(request)}")
        if request.model is not self._model:
            raise InputError(f"the request is one of {request.model.name}, the scheduler is of {self._model.name}")
        ticket = Ticket(request, client, perf_counter(), self._cancel)
        with self._changed:
            if self._closing:
                raise InputError("the scheduler is closed: no more requests are taken")
            if len(self._waiting) >= self._most + self._steps.free:
                raise QueueFullError(len(self._waiting), self._patience())
            self._waiting.add(client, ticket)
            self._sums["requests"] += 1
            self._changed.notify_all()
        return ticket

    def stats(self) -> Stats:
        """How many run and wait, and what has been done so far."""
        with self._changed:
            sums = dict(self._sums)
            running, waiting = len(self._steps.running), len(self._waiting)
        reused = sums.pop("reused")
        return Stats(
            running=running, waiting=waiting, prompt_tokens=self._steps.prompt_tokens, reused_tokens=reused, **sums
        )

    def close(self, drain: bool = True) -> None:
        """Take no more requests, and wait for the end of those that there are; or end them, with an error."""
        with self._changed:
            self._closing, self._drains = True, drain and (self._drains or not self._closing)
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _patience(self) -> float:
        """Seconds until one more can be taken, at the pace of those before."""
        return max(1.0, self._held / max(1, len(self._steps.running)))

    def _cancel(self, ticket: Ticket[Any]) -> None:
        with self._changed:
            self._sums["cancelled"] += 1
            if not self._waiting.remove(ticket.client, ticket):
                self._cancelled.add(ticket)
            self._changed.notify_all()

    def _loop(self) -> None:
        try:
            while self._admit():
                events: Sequence[tuple[Running, Event | Exception]]
                try:
                    events = self._steps.step()
                except Exception as error:  # a mistake of this program: whoever is served hears of it, and it goes on
                    events = [(each, error) for each in self._steps.running]
                    self._steps.running.clear()
                with self._changed:
                    self._sums["steps"] += 1
                    for each, event in events:
                        self._told(each, event)
        finally:  # nobody waits for what does not come
            with self._changed:
                self._closing = True
                self._give_up()

    def _told(self, each: Running, event: Event | Exception) -> None:
        ticket = self._tickets[each]
        if isinstance(event, Exception):
            self._sums["failed"] += not ticket.cancelled
            ticket.end(event)
        else:
            self._sums["tokens"] += isinstance(event, Token)
            ticket.push(event)
            if event.finish_reason is None:
                return
            self._sums["finished"] += not ticket.cancelled
        self._ended(each)

    def _ended(self, each: Running) -> None:
        ticket = self._tickets.pop(each)
        self._cancelled.discard(ticket)
        self._sums["reused"] += each.generation.reused
        seconds = perf_counter() - each.began
        self._held += NEWEST * (seconds - self._held)

    def _admit(self) -> bool:
        """Wait until there is something to run, and give free slots to who waits; whether there is anything."""
        with self._changed:
            while True:
                for each in [each for each in self._steps.running if self._tickets[each] in self._cancelled]:
                    self._steps.drop(each)
                    self._ended(each)
                self._cancelled.clear()
                if self._closing and not self._drains:
                    self._give_up()
                while self._waiting and self._steps.free:
                    ticket = self._waiting.take(Counter(each.client for each in self._steps.running))
                    try:
                        self._tickets[self._steps.begin(ticket.request, ticket.since, ticket.client)] = ticket
                    except Exception as error:
                        self._sums["failed"] += 1
                        ticket.end(error)
                if self._steps.running:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _give_up(self) -> None:
        for ticket in [*self._tickets.values(), *self._waiting]:
            ticket.end(LapinferError("the scheduler was closed before the answer was complete"))
        self._steps.running.clear()
        self._tickets.clear()
        self._waiting = Waiting()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)
