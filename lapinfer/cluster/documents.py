"""A batch over Ray Data: lines go to actors that have an engine each, and come back as they are done.

Ray Data keeps engines busy, starts others for those that died, and gives these the lines again that were lost. That
none is lost and none told twice does not depend on it: feed.py knows which lines are out, and what a run of Ray Data
ends without is given out again.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from lapinfer.batch.engine import Engine, at_once, model_name
from lapinfer.batch.lines import Line
from lapinfer.batch.records import Answered, refused
from lapinfer.batch.requests import Defaults, LineError
from lapinfer.cluster.copies import Offer, held
from lapinfer.cluster.feed import GROUP, Feed, Giving, unpacked
from lapinfer.cluster.offers import here
from lapinfer.cluster.shares import Range
from lapinfer.cluster.start import ClusterError, first_line
from lapinfer.errors import LapinferError
from lapinfer.interrupts import check
from lapinfer.machine import keep_one_heap
from lapinfer.options import LoadOptions
from lapinfer.parallel import started
from lapinfer.text.language_model import open_model

if TYPE_CHECKING:
    from lapinfer.batch.run import Answers

ROUNDS = 4
"""Runs of Ray Data that a line may get lost in; in the last one it is alone, so that it ends nothing but itself."""
RETRIES = 3
"""Of a group in one run, whose engine ends."""
LOOK = 0.2
"""Seconds between two looks whether Ctrl-C was pressed."""
INDEX, LINES, DONE = "index", "lines", "done"
"""Columns: a group's number, its lines, and what came of them (both pickled)."""


class Fed(Datasource):
    """What a feed has, as a source of Ray Data's: a block for each group, as groups come."""

    def __init__(self, feed: Any) -> None:
        super().__init__()
        self._feed = feed

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *rest: Any, **more: Any) -> list[ReadTask]:
        """One, which lasts as long as there are lines."""
        feed = self._feed

        def read() -> Iterator[pa.Table]:
            index = 0
            while (group := ray.get(feed.get.remote(index))) is not None:
                yield pa.table({INDEX: [index], LINES: pa.array([group], pa.large_binary())})
                index += 1

        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


class GroupAnswerer:
    """What Ray Data runs on nodes: an engine, which answers the lines of several groups at once."""

    def __init__(self, offer: Offer, options: LoadOptions, defaults: Defaults) -> None:
        keep_one_heap()
        self._error: LapinferError | None = None
        try:
            self._held = held(offer, options)
            model = open_model(self._held.path, self._held.options)
            self._engine = Engine(model_name(offer.name), model, defaults)
            self._room = asyncio.Semaphore(self._engine.at_once)  # more would be looked at in each step
        except LapinferError as error:  # Ray would try again and again, and tell of it at length
            self._error = error

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (index,), (group,) = batch[INDEX], batch[LINES]
        return {INDEX: [index], DONE: [pickle.dumps(await self._answered(group))]}

    async def _answered(self, group: bytes) -> list[Answered | BaseException]:
        if self._error is not None:
            return [self._error]
        return await asyncio.gather(*map(self._line_answered, unpacked(group)), return_exceptions=True)

    async def _line_answered(self, line: Line) -> Answered:
        async with self._room:
            return await self._engine.answer(line)


@contextmanager
def engines(offer: Offer, options: LoadOptions, defaults: Defaults, count: Range) -> Iterator[Answers]:
    """What answers lines (batch/run.py's `Answers`) by so many engines, each with `options.threads` CPUs.

    One engine is ready when the block begins. Errors are those of loading, on any node; ClusterError where Ray Data
    fails, and not one line was done since it was begun.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: else groups are gathered until they are 128 MB
    context.max_errored_blocks = -1  # their lines are given out again
    context.log_internal_stack_trace = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told here
    batch = _Batch(offer, options, defaults, count)
    run = batch.begun()
    try:
        yield lambda lines: batch.answers(lines, run)
    finally:
        run.close()


class _Run:
    """One run of Ray Data: a feed, and what comes of its groups, from a thread of its own."""

    def __init__(self, make: Callable[[Any], Dataset]) -> None:
        self.feed: Any = ray.remote(Feed).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here()).remote()
        self._dataset, self.error = make(self.feed), None
        self._results: queue.SimpleQueue[tuple[int, list[Any]] | None] = queue.SimpleQueue()
        if started(self._consume, name="lapinfer-answers") is None:
            raise LapinferError("the system refuses one more thread (ulimit -u, or the container's limit of processes)")

    def _consume(self) -> None:
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                for index, done in zip(batch[INDEX], batch[DONE], strict=True):
                    self._results.put((int(index), pickle.loads(done)))
        except BaseException as error:
            self.error: BaseException | None = error
        finally:
            self._results.put(None)

    def results(self) -> Iterator[list[Answered]]:
        """What came of a group, as groups are done; raises what an engine has raised, and Ctrl-C in the main thread."""
        while True:
            check()
            with suppress(queue.Empty):
                if (found := self._results.get(timeout=LOOK)) is None:
                    return
                index, answers = found
                if (failed := next((each for each in answers if not isinstance(each, Answered)), None)) is not None:
                    raise failed
                yield answers
                self.feed.done.remote(index)

    def close(self) -> None:
        with suppress(Exception):
            ray.kill(self.feed)


class _Batch:
    def __init__(self, offer: Offer, options: LoadOptions, defaults: Defaults, count: Range) -> None:
        self._given, self._count = (offer, options, defaults), count
        self._at_once, self._threads = at_once(options.slots), options.threads

    def begun(self) -> _Run:
        """A run that has an engine ready, as an empty group came back."""
        run = _Run(self._dataset)
        run.feed.put.remote(b"")
        if next(run.results(), None) is None:
            run.close()
            raise _failed(run)
        return run

    def answers(self, lines: Iterable[Line], run: _Run) -> Iterator[Answered]:
        """Rounds, until nothing is left: in the later ones, fewer of the lines that got lost are out at a time."""
        group, most, lost = GROUP, self._count.most * (self._at_once + 3 * GROUP), list[Line]()
        for number in range(ROUNDS):
            lost = yield from self._round(lines, run, most=1 if number == ROUNDS - 1 else most, group=group)
            if not lost:
                return
            lines, run, group, most = lost, _Run(self._dataset), 1, max(most // 8, 1)
        for line in lost:
            yield refused(line, LineError("engine_ended", "the process that answered this line ended each time"))

    def _round(
        self, lines: Iterable[Line], run: _Run, *, most: int, group: int
    ) -> Generator[Answered, None, list[Line]]:
        """A run, and another one where it ends before the lines do; gives those that got lost on the way."""
        while True:
            giving = Giving(lines, run.feed.put.remote, most=most, engines=self._count.least, group=group)
            progress = False
            try:
                for found in run.results():
                    for each in found:
                        if giving.took_back(each.number):
                            progress = True
                            yield each
            finally:
                run.close()
            lost, left = giving.lost, giving.close()
            if giving.error is not None:
                raise giving.error
            if run.error is None:
                return lost
            if not progress:
                raise _failed(run)
            lines, run = left, _Run(self._dataset)

    def _dataset(self, feed: Any) -> Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Ray 2.64 will have other names for
            return self._answered(ray.data.read_datasource(Fed(feed), override_num_blocks=1, num_cpus=0))

    def _answered(self, groups: Dataset) -> Dataset:
        pool = ActorPoolStrategy(
            min_size=self._count.least, max_size=self._count.most, max_concurrent_calls_per_actor=self._at_once
        )
        return groups.map_batches(
            GroupAnswerer, batch_size=1, fn_constructor_args=self._given, compute=pool, num_cpus=self._threads,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},
        )  # fmt: skip


def _failed(run: _Run) -> ClusterError:
    why = first_line(run.error) if run.error is not None else "no engine could be started"
    if (lacks := re.search(r"No module named '([\w.]+)'", str(run.error))) is not None:
        why = f'a node lacks {lacks[1]}: pip install "lapinfer[cluster]" on each, the same version'
    return ClusterError(f"Ray Data failed: {why}")
