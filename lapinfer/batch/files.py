"""What kinds of files a batch reads and writes, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lapinfer.batch import parquet
from lapinfer.batch.columns import Columns
from lapinfer.batch.journal import Journal
from lapinfer.batch.lines import Source, TextFile
from lapinfer.outputs import whole_file
from lapinfer.progress import Phase, Progress

WRITING = "writing"
EVERY = 1000
"""Records between two looks at the progress."""


def open_source(path: str) -> Source:
    """Where the lines of a file are; InputError where it cannot be read."""
    return parquet.ParquetFile(path) if _is_parquet(path) else TextFile(path)


def check_output(path: str) -> None:
    """InputError where what writes such a file is missing."""
    if _is_parquet(path):
        parquet.check_installed()


def write_output(target: Path, journal: Journal, source: Source, progress: Progress) -> None:
    """All records, in the order of the lines; InputError where they cannot be written."""
    records = _told(journal, progress)
    with whole_file(target, journal.path.with_suffix(".new")) as part:
        if _is_parquet(target):
            parquet.write(part, records, Columns(journal.records()), source)
            return
        with part.open("wb") as file:
            for _, record in records:
                file.write(record + b"\n")


def _is_parquet(path: str | Path) -> bool:
    return Path(path).suffix.lower() == parquet.SUFFIX


def _told(journal: Journal, progress: Progress) -> Iterator[tuple[int, bytes]]:
    for index, each in enumerate(journal.records()):
        if index % EVERY == 0:
            progress(Phase(WRITING, "lines"), index, journal.sums.lines)
        yield each
