"""How fast the disk under a folder is read in pieces, as experts are: a file that is written, forgotten and read."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lapinfer.runtime.pool import PIECE

BYTES = 96 << 20
UNCACHED = 48
"""macOS: F_NOCACHE of fcntl."""


def read_rate(folder: Path, threads: int) -> float | None:
    """Bytes per second of a file in `folder`, or in the nearest one above that is there, read by so many threads.

    The file is removed. None where nothing can be written there, and where the system would answer from memory.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            piece = os.urandom(PIECE)
            for i in range(BYTES // PIECE):  # no two pieces are the same: some file systems would keep one of them
                file.write(i.to_bytes(8, "little") + piece[8:])
            file.flush()
            os.fsync(file.fileno())
            return _rate(file.fileno(), threads) if _forget(file.fileno()) else None
    except OSError:
        return None


def _rate(fd: int, threads: int) -> float:
    pieces = range(0, BYTES, PIECE)
    apart = [*pieces[::3], *pieces[1::3], *pieces[2::3]]  # the system reads ahead of what is read in order
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        read = sum(len(data) for data in pool.map(lambda at: os.pread(fd, PIECE, at), apart))
        return read / (time.perf_counter() - began)


def _forget(fd: int) -> bool:
    """Whether the file's pages have left the system's cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, UNCACHED, 1)
        return True
    return False
