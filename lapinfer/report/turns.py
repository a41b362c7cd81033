"""Several models are measured in turns: what else the machine does, and how warm it is, meets all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from lapinfer.errors import DoesNotFitError, LapinferError
from lapinfer.report.costs import Costs

if TYPE_CHECKING:
    from lapinfer.model import Model

T = TypeVar("T")
FAILURES = (LapinferError, OSError, MemoryError)
"""What ends the turns of one model, and of no other."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a side yields first, once its model is loaded: bytes that it needs while the others are loaded, too."""

    bytes: int

    @classmethod
    def of(cls, model: Model) -> Loaded:
        return cls(Costs.of(model).weight_bytes + model.buffer_bytes())


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """What side number `side` has measured, or why it has not. paired: the others took their turns beside it."""

    side: int
    value: T | LapinferError | OSError | MemoryError
    paired: bool


Side = Callable[[], Generator[Loaded | T, None, None]]
"""Loads a model, and yields `Loaded`, then something after each turn, as often as the others; closing it gives back."""


def take_turns(sides: Sequence[Side[T]], room: int | None, say: Callable[[str], object]) -> Iterator[Turn[T]]:
    """Round r of every side before round r + 1; every other round goes backwards, so that a steady drift favours none.

    room: bytes that all together may take, None for unknown. Where they take more, one side is measured after the
    other, and `say` is told.
    """
    failed: set[int] = set()
    running: dict[int, Generator[Loaded | T, None, None]] = {}
    fits = True
    try:
        needed = 0
        for i, side in enumerate(sides if len(sides) > 1 else ()):
            loading = side()
            try:
                loaded = next(loading)
                assert isinstance(loaded, Loaded)
                running[i], needed = loading, needed + loaded.bytes
                fits = room is None or needed <= room or len(running) == 1
            except DoesNotFitError as error:
                if not running:
                    failed.add(i)
                    yield Turn(i, error, False)
                fits = not running
            except FAILURES as error:
                failed.add(i)
                yield Turn(i, error, False)
            if not fits:
                break
        if fits and running:
            yield from _rounds(running)
            return
    finally:
        _close(running)
    if len(sides) > 1 and not fits:
        say("note: not all models fit in memory together: they are measured one after the other, and not compared")
    for i, side in enumerate(sides):
        if i not in failed:
            running = {i: side()}
            try:
                yield from _rounds(running)
            finally:
                _close(running)


def _close(running: dict[int, Generator[Loaded | T, None, None]]) -> None:
    for side in running.values():
        side.close()
    running.clear()


def _rounds(running: dict[int, Generator[Loaded | T, None, None]]) -> Iterator[Turn[T]]:
    """Turns of these sides until all have ended."""
    order, paired = list(running), len(running) > 1
    while order:
        for i in order:
            try:
                value = next(running[i])
            except StopIteration:
                del running[i]
            except FAILURES as error:
                del running[i]
                yield Turn(i, error, paired)
            else:
                if not isinstance(value, Loaded):
                    yield Turn(i, value, paired)
        order = [i for i in reversed(order) if i in running]
