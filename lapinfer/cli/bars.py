"""A bar for what takes long: on the last line of a terminal on stderr, and nowhere else.

    with Progress() as progress:                          # of a command; what it calls gets `progress`
        pack(…, progress=progress)

lapinfer/progress.py has what may be told. A bar comes after half a second, so most work never shows one; there is one
at a time, of the phase that was told last; it goes when the work ends, and a line says how long the phases took. Where
no bar can be drawn (a pipe, TERM=dumb), a phase's own line is printed once, if it has one. `note`, `say` and
`print_json` may be called at any time: they take the bar away first. `still`: nothing is drawn but within a call, so
that what is measured between two calls has the computer for itself.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lapinfer.cli.console import note
from lapinfer.cli.eta import Pace
from lapinfer.cli.last_line import LAST_LINE
from lapinfer.digits import counted, duration
from lapinfer.interrupts import KEYBOARD, check
from lapinfer.parallel import started
from lapinfer.progress import Phase
from lapinfer.shown import columns, padded, shown_line

APPEARS = 0.5
"""Seconds of work before there is a bar."""
EVERY = 0.25
"""Seconds between two drawings: each takes a millisecond of one core."""
WORTH_SAYING = 2.0
"""Seconds of work before it is said how long it took."""
NARROWEST, WIDEST = 6, 40
"""Columns of a bar; where there is no room for the first, there is none."""
USUAL_REST = len("59 s left")
"""Columns that are kept free, so that a bar does not become shorter when its end is foreseen."""


class Progress:
    """progress(phase, done, total) moves a bar if stderr is a terminal; progress("…") prints a line."""

    def __init__(self, *, still: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._still, self._clock = still, clock
        self._paces: dict[str, Pace] = {}
        self._phase: Phase | None = None
        self._told = self._began = clock()
        self._draws, self._console = False, None
        self._over = threading.Event()

    def __call__(self, what: str, done: float | None = None, total: float | None = None) -> None:
        check()
        if done is None:
            note(what)
            return
        with LAST_LINE.lock:
            self._count(what if isinstance(what, Phase) else Phase(what), done, total)
        if self._draws and self._still:
            self._draw()

    def _count(self, phase: Phase, done: float, total: float | None) -> None:
        """Time belongs to the phase that was told last, until that is done."""
        now, before = self._clock(), self._phase
        if before is None or self._paces[before].is_done:
            if before is None or now - self._told > APPEARS:
                self._began = now
        elif before != phase:
            pace = self._paces[before]
            pace.count(pace.done, pace.total, now - self._told)
        if phase not in self._paces:
            self._paces[phase] = Pace(done, total)
            if phase.said and not self._draws:
                note(phase.said)
        else:
            pace = self._paces[phase]
            pace.count(done, total, 0.0 if before != phase or pace.is_done else now - self._told)
        self._phase, self._told = phase, now

    def __enter__(self) -> Progress:
        self._draws = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if self._draws:
            KEYBOARD.before_end = LAST_LINE.left
            if not self._still:
                self._still = started(self._keep_drawing, name="lapinfer-bar") is None
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if not self._draws:
            return
        with LAST_LINE.lock:
            self._over.set()
            LAST_LINE.clear()
            KEYBOARD.before_end = None
            self._draws = False  # a model may tell of a kernel that it compiles later: in a line
        if kind is None and (line := self.summary()):
            note(line)
        self._paces.clear()
        self._phase = None

    def summary(self) -> str:
        """How long the phases took, where that was long."""
        took = {name: pace.seconds for name, pace in self._paces.items()}
        if sum(took.values()) < WORTH_SAYING:
            return ""
        return ", ".join(f"{name} {duration(s)}" for name, s in took.items() if s >= APPEARS)

    def _keep_drawing(self) -> None:
        wait = APPEARS
        while not self._over.wait(wait):
            self._draw()
            wait = EVERY

    def _draw(self) -> None:
        now = self._clock()
        if self._phase is None or now - self._began < APPEARS:
            return
        if self._console is None:  # which takes 0.1 s, in which nobody should wait for the lock
            self._console = _console()
        with LAST_LINE.lock:
            if self._over.is_set():
                return
            pace, since = self._paces[self._phase], self._clock() - self._told
            if pace.is_done and since > APPEARS:
                LAST_LINE.clear()
            else:
                width, encoding = self._console.width - 1, self._console.encoding
                LAST_LINE.show(self._console, line(self._phase, pace, since, width, encoding))


def line(phase: Phase, pace: Pace, since: float, width: int, encoding: str = "utf-8") -> str:
    """What is shown of a phase, `since` seconds after its last count: in so many columns as much as fits."""
    name = shown_line(phase)
    if phase.part is not None:
        name = f"{phase.part[0]}/{phase.part[1]} {name}"
    left = None if pace.is_done else pace.left(since)
    rest = "" if left is None else f"{duration(left) if left > 9 else f'{math.ceil(max(left, 1))} s'} left"
    share = min(max(pace.done / pace.total, 0.0), 1.0) if pace.total else None
    shares = "" if share is None else f"{100 * share:3.0f} %"
    counts, beside = counted(pace.done, pace.total, phase.unit), shown_line(phase.beside)
    if pace.total is not None:  # so that nothing moves while it grows
        counts = padded(counts, columns(counted(pace.total, pace.total, phase.unit)))
    for least, parts in (
        (NARROWEST, (name, shares, counts, beside, rest)), (NARROWEST, (name, shares, beside, rest)),
        (0, (name, shares, beside, rest)), (NARROWEST, (name, shares, rest)), (0, (name, shares, rest)),
        (0, (shares, rest)),
    ):  # fmt: skip
        kept = [part for part in parts if part]
        room = width - sum(map(columns, kept)) - 2 * (len(kept) - 1)
        if least and share is not None:
            if (bar := room - 2 - max(USUAL_REST - columns(rest), 0)) < least:
                continue
            kept.insert(1, _bar(share, min(bar, WIDEST), encoding))
        if room >= 0:
            return "  ".join(kept).rstrip()
    return shares[:width]


def _bar(share: float, width: int, encoding: str) -> str:
    full = int(share * width)
    return "━" * full + "─" * (width - full) if encoding.startswith("utf") else "#" * full + "-" * (width - full)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)
