"""A process that runs mutants one after the other, and says which before each: one that kills it has a name.

`python -m bench.fuzzing.child KIND SEED FIRST LAST PIPE FOLDER MEGABYTES` writes lines of JSON to a file descriptor.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from bench.fuzzing.subjects import SUBJECTS, mutant_rng
from lapinfer.errors import LapinferError
from lapinfer.machine import peak_resident_bytes

LONGEST_MESSAGE = 3000
"""Characters of an error's message."""


def main(kind: str, seed: int, first: int, last: int, pipe: int, folder: Path, megabytes: int) -> None:
    def tell(**line: Any) -> None:
        os.write(pipe, (json.dumps(line) + "\n").encode())

    faulthandler.enable()
    warnings.simplefilter("error", RuntimeWarning)  # NumPy's: a line on stderr that helps nobody
    compiling = _announce_compiling(tell)
    limited = False
    for index in range(first, last):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.environ["LAPINFER_HOME"] = str(folder / "home")
        tell(begin=index)
        before, began, compiled = peak_resident_bytes() or 0, time.process_time(), compiling[0]
        outcome, detail = outcome_of(kind, folder / "m", seed, index)
        grown = (peak_resident_bytes() or 0) - before
        seconds = time.process_time() - began - (compiling[0] - compiled)
        tell(end=index, outcome=outcome, detail=detail, s=round(seconds, 3), mb=round(grown / 1e6, 1))
        if not limited and index > first + 2:  # from here on, growth beyond the bound is refused, and shows
            limit = _virtual_bytes() + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            limited = True


def outcome_of(kind: str, folder: Path, seed: int, index: int) -> tuple[str, str]:
    """refused, a way of running, or "wrong" with a traceback."""
    rng, subject = mutant_rng(seed, kind, index), SUBJECTS[kind]
    folder.mkdir(parents=True)
    try:
        return subject.run(folder, rng, subject.make(folder, rng)), ""
    except LapinferError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST_MESSAGE:
            return "wrong", f"a message of {len(str(error))} characters: {str(error)[:300]!r}"
        return "refused", ""
    except BaseException:
        return "wrong", traceback.format_exc()[-3000:]


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _announce_compiling(tell: Any) -> list[float]:
    """A kernel that was never needed before takes seconds to compile, which is no hang: these seconds, in a list."""
    from lapinfer.kernels import library

    load, seconds = library.load, [0.0]

    def announced(*arguments: Any, **more: Any) -> dict[str, int]:
        tell(compiling=True)
        began = time.process_time()
        try:
            return load(*arguments, **more)
        finally:
            seconds[0] += time.process_time() - began
            tell(compiling=False)

    library.load = announced
    return seconds


if __name__ == "__main__":
    kind, seed, first, last, pipe, folder, megabytes = sys.argv[1:]
    main(kind, int(seed), int(first), int(last), int(pipe), Path(folder), int(megabytes))
