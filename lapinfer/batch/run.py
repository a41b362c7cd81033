"""A batch from its lines to its output: what is not done yet is answered, kept, and written in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lapinfer.batch.files import write_output
from lapinfer.batch.journal import Journal, begun
from lapinfer.batch.lines import Line, Source
from lapinfer.batch.records import Answered
from lapinfer.batch.sums import Sums
from lapinfer.digits import number
from lapinfer.errors import InputError, LapinferError
from lapinfer.progress import Phase, Progress, silent

Answers = Callable[[Iterable[Line]], Iterator[Answered]]
"""Gives each line's record once, in any order; it takes few lines ahead of those that it gives back."""
Start = Callable[[], AbstractContextManager[Answers]]
"""Has what answers lines ready, a model loaded say; called where a line is left to be answered."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A batch that is done. sums: of all lines; before: of these, those that were done before.

    read, made: tokens of now, in so many seconds, a model's loading not counted.
    """

    sums: Sums
    before: int
    read: int
    made: int
    seconds: float


class _Pace:
    """Tells the progress of a batch."""

    def __init__(self, sums: Sums, total: int | None, progress: Progress) -> None:
        self._sums, self._total, self._progress = sums, total, progress
        self.before, self._read, self._made = sums.lines, sums.read, sums.made
        self._began = time.perf_counter()

    def told(self) -> None:
        sums = self._sums
        beside = f"{number((sums.made - self._made) / max(time.perf_counter() - self._began, 1e-3), 3)} tok/s"
        if sums.failed:
            beside += f", {sums.failed:,} failed"
        self._progress(Phase("answering", "lines", beside=beside), sums.lines, self._total)

    def summary(self) -> Summary:
        sums, seconds = self._sums, time.perf_counter() - self._began
        return Summary(sums, self.before, sums.read - self._read, sums.made - self._made, seconds)


def run(
    source: Source, target: Path, start: Start, about: Mapping[str, Any], *, force: bool = False,
    progress: Progress = silent,
) -> Summary:  # fmt: skip
    """Answer all lines of a source, and write their records to a file in the order of the lines.

    about: what decides the answers, besides the lines: a batch that was begun with something else is not gone on with.
    force: the file is replaced where it is there. InputError says what is wrong with input or output; whatever ends
    this early, Ctrl-C too, leaves what is done in OUT.part, and the same call goes on from there.
    """
    if target.exists() and source.again and os.path.exists(source.name) and os.path.samefile(target, source.name):
        raise InputError(f"{target}: input and output are the same file; name another output")
    with begun(target, about, force=force) as journal:
        if journal.sums.lines:
            progress(f"going on: {journal.sums.lines:,} lines are done already, in {journal.path}")
        left = sum(1 for _ in journal.pending(source.lines())) if source.again else None
        pace = _Pace(journal.sums, None if left is None else journal.sums.lines + left, progress)
        try:
            if left != 0:
                with start() as answers:
                    pace = _Pace(journal.sums, None if left is None else journal.sums.lines + left, progress)
                    _answer(source, journal, answers, pace)
            summary = pace.summary()
            write_output(target, journal, source, progress)
        except (KeyboardInterrupt, LapinferError):
            if not journal.sums.lines:
                journal.remove()
                raise
            of = "" if left is None else f" of {pace.before + left:,}"
            progress(f"{journal.sums.lines:,}{of} lines are done, and kept in {journal.path}: the same command goes on")
            raise
        journal.remove()
        return summary


def _answer(source: Source, journal: Journal, answers: Answers, pace: _Pace) -> None:
    pace.told()
    for done in answers(journal.pending(source.lines())):
        journal.add(done)
        pace.told()


def run_to_stream(source: Source, out: BinaryIO, start: Start, progress: Progress = silent) -> Summary:
    """Answer all lines, and write their records as they are done. Nothing is kept besides."""
    sums = Sums()
    with start() as answers:
        pace = _Pace(sums, sum(1 for _ in source.lines()) if source.again else None, progress)
        for done in answers(source.lines()):
            out.write(done.record + b"\n")
            out.flush()
            sums.add(done)
            pace.told()
    return pace.summary()
