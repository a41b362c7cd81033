"""One model that answers lines: as many at once as it has slots, with the endpoints that clients of a server ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lapinfer.batch.ahead import Ahead
from lapinfer.batch.lines import Line
from lapinfer.batch.records import Answered, answered, marks, refused
from lapinfer.batch.requests import Defaults, LineError, read
from lapinfer.errors import LapinferError
from lapinfer.interrupts import check
from lapinfer.options import LoadOptions, ServeOptions
from lapinfer.progress import Progress
from lapinfer.serve.encoding import encoded
from lapinfer.serve.inside import post
from lapinfer.serve.models import Models, named
from lapinfer.serve.state import State
from lapinfer.text.language_model import LanguageModel, open_model

SLOTS = 8
"""Lines that are answered at once, where nothing else is asked for."""
NO_QUEUE = 1_000_000
"""Requests that may wait: who asks here asks for few lines at a time, and for whatever these want."""
NO_TIMEOUT = 1e9
"""Seconds that an answer may take: nobody waits for it."""
MOST_BODY = 1000.0
"""MB of a body: lines are bounded when they are read."""
LOOK = 0.2
"""Seconds between two looks whether Ctrl-C was pressed."""


class Engine:
    """A model for lines of batches. Any number of tasks of one event loop may await `answer` at once.

        engine = Engine.open("smollm2", LoadOptions(slots=8), Defaults(max_tokens=100))
        answered = await engine.answer(Line(1, b'{"prompt": "Say hi."}'))     # an event loop of one's own
        for answered in engine.answers(lines): …                             # or one that this runs
        engine.close()

    What a line is answered follows from the line and the defaults alone, to the byte: not from the company, the order,
    threads or slots. So lines may be answered by several engines, in other processes and on other machines (`Line`,
    `Defaults`, `LoadOptions` and `Answered` can be pickled). As `Defaults.seed` and the line's number decide what is
    drawn, an engine keeps nothing of the lines before, but what it has in its caches.
    """

    def __init__(self, name: str, model: LanguageModel, defaults: Defaults) -> None:
        """name: what lines may call the model, where they name one. The engine closes the model."""
        self.model, self.defaults, self._name = model, defaults, name
        options = ServeOptions(queue=NO_QUEUE, timeout=NO_TIMEOUT, body=MOST_BODY)
        self._models = Models({name: name}, LoadOptions(), open=_loaded, size=_loaded, memory=None, queue=NO_QUEUE)
        self._models.put(name, model)
        self._state = State(options, self._models)

    @classmethod
    def open(cls, path: str, options: LoadOptions, defaults: Defaults, progress: Progress | None = None) -> Engine:
        """The engine of a model that `lapinfer.load` can load."""
        return cls(model_name(path), open_model(path, options, progress), defaults)

    @property
    def at_once(self) -> int:
        """Lines that are worth being in flight."""
        return at_once(self.model.model.slots)

    async def answer(self, line: Line) -> Answered:
        """The record of a line, an error's where it cannot be answered. Cancelled, it ends what it has asked for.

        Raises a LapinferError where it is not the line's fault, but memory's, say: then nothing is known of the line.
        """
        model = self.model
        try:
            chats, ctx = model.template is not None, model.model.ctx
            asked = read(line, self.defaults, model=self._name, chats=chats, ctx=ctx)
        except LineError as error:
            return refused(line, error)
        status, body = await post(self._state, asked.url, encoded(asked.body), marks(line, asked))
        if status == 503:
            raise LapinferError(f"line {line.number}: there is not enough memory to answer it now")
        return answered(line, asked, status, body)

    def answers(self, lines: Iterable[Line]) -> Iterator[Answered]:
        """Records of lines as they are done; lines are read in a thread, few ahead.

        For the main thread: between answers, Ctrl-C is raised. Where iteration ends early, what is in flight is given
        up.
        """
        loop = asyncio.new_event_loop()
        more, running = asyncio.Event(), set[asyncio.Task[Answered]]()

        def changed() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(more.set)

        ahead = Ahead(lines, self.at_once, changed)
        try:
            while True:
                more.clear()
                while len(running) < self.at_once and (line := ahead.take()) is not None:
                    running.add(loop.create_task(self.answer(line)))
                if not running and ahead.is_over:
                    return
                waits = loop.create_task(more.wait()) if len(running) < self.at_once else None
                try:
                    awaited = {*running, waits} if waits is not None else running
                    finished, _ = loop.run_until_complete(
                        asyncio.wait(awaited, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                    )
                finally:
                    if waits is not None:
                        waits.cancel()
                check()
                for task in [task for task in running if task in finished]:
                    running.remove(task)
                    yield task.result()
        finally:
            ahead.close()
            _end(loop, running)

    def close(self) -> None:
        """End what runs, and let the model go."""
        for served in self._models.loaded:
            served.scheduler.close(drain=False)
            served.model.close()


def at_once(slots: int) -> int:
    """Lines that are worth being in flight: those that have slots, and a few that are ready when one is free."""
    return slots + max(2, slots // 2)


def model_name(path: str) -> str:
    """What lines may call a model, as clients of a server would."""
    return next(iter(named([path])))


def _loaded(path: str | Path, options: LoadOptions) -> Any:
    raise LapinferError(f"{path}: a batch has one model, which is loaded already")


def _end(loop: asyncio.AbstractEventLoop, running: set[asyncio.Task[Answered]]) -> None:
    for task in running:
        task.cancel()
    if running:
        loop.run_until_complete(asyncio.wait(running))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
