"""What long work tells of itself. The library reports and prints nothing; who has called it draws that, or does not.

    def pack(…, progress: Progress = silent):
        progress("note: …")                               # one argument: a line that should be noticed
        phase = Phase("packing", "weights", said="packing 3 M weights (once)")
        progress(phase, before, total)                    # what was done before counts as such
        progress(phase, done, total)                      # as often as you like: nothing is drawn in a call

cli/bars.py draws; `lapinfer.load(progress=…)` and others take any function of these arguments. A phase is its name, a
str, so that a function that knows nothing of phases can print it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Progress = Callable[..., Any]
"""progress(phase, done, total) for long work, where total may be None; progress(line) for what should be noticed."""

Notice = Callable[[str], object]
"""What hears of lines alone."""

Unit = Literal[
    "",
    "bytes",
    "weights",
    "tokens",
    "steps",
    "kernels",
    "chunks",
    "texts",
    "trials",
    "runs",
    "parts",
    "lines",
    "nodes",
]
"""What is counted. Nothing: only the share is of interest."""


def silent(what: str, done: float | None = None, total: float | None = None) -> None:
    """A progress that nobody wants to see."""


class Phase(str):
    """A name of long work (`training`) that knows more: it is the same phase as long as the name is.

    unit: of the counts. beside: figures of now, which are shown beside them (`loss 3.21`). said: what is said of it at
    its start in a log, where no bar is drawn: a line, or nothing. part: it is the first of two (1, 2), say.
    """

    unit: Unit
    beside: str
    said: str
    part: tuple[int, int] | None

    def __new__(
        cls, name: str, unit: Unit = "", *, beside: str = "", said: str = "", part: tuple[int, int] | None = None
    ) -> Phase:
        phase = super().__new__(cls, name)
        phase.unit, phase.beside, phase.said, phase.part = unit, beside, said, part
        return phase


class Count:
    """Steps of one long work that several places take: each says what it begins, and all are one phase.

    count = Count(progress, "report", total=12)
    count("smollm2: perplexity")                          # 0 of 12; the next call says that this is done
    """

    def __init__(self, progress: Progress, name: str, total: int, unit: Unit = "parts") -> None:
        self.progress, self._name, self._total, self._unit = progress, name, total, unit
        self._begun = 0

    def __call__(self, what: str) -> None:
        self.told(what, self._begun)
        self._begun += 1

    def told(self, what: str, done: int) -> None:
        phase: Phase = Phase(self._name, self._unit, beside=what)  # pyright: ignore[reportArgumentType]
        self.progress(phase, min(done, self._total), self._total)

    def end(self) -> None:
        """What was begun is done, and nothing else begins."""
        self.told("", self._begun)
