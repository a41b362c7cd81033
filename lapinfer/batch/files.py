"""What kinds of files a batch reads and writes, by their names."""

from __future__ import annotations

from pathlib import Path

from lapinfer.batch.journal import Journal
from lapinfer.batch.lines import Source, TextFile
from lapinfer.outputs import whole_file
from lapinfer.progress import Phase, Progress

WRITING = "writing"
EVERY = 1000
"""Records between two looks at the progress."""


def open_source(path: str) -> Source:
    """Where the lines of a file are; InputError where it cannot be read."""
    return TextFile(path)


def write_output(target: Path, journal: Journal, source: Source, progress: Progress) -> None:
    """All records, in the order of the lines; InputError where they cannot be written."""
    with whole_file(target, journal.path.with_suffix(".new")) as part, part.open("wb") as file:
        for index, record in enumerate(journal.records()):
            if index % EVERY == 0:
                progress(Phase(WRITING, "lines"), index, journal.sums.lines)
            file.write(record + b"\n")
