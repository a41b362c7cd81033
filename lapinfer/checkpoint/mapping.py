"""Files as mapped memory: opened read-only, and pages let go that will not be read again soon."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from lapinfer.errors import CheckpointError


class _Mapping(mmap.mmap):
    """A mapped file that knows what the system said of it when it was opened."""

    opened: os.stat_result


def map_file(path: Path) -> memoryview:
    """The whole file, read-only, by mmap; a view keeps the mapping alive."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file")
        with path.open("rb") as file:
            opened = os.fstat(file.fileno())  # before anything is read of it
            mapping = _Mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapping.opened = opened
            return memoryview(mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except ValueError:
        raise CheckpointError(f"{path}: the file is empty") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def opened_as(data: memoryview) -> os.stat_result:
    """What the system said of a file of `map_file` when it was opened."""
    mapping = data.obj
    assert isinstance(mapping, _Mapping)
    return mapping.opened


def let_go(view: np.ndarray) -> None:
    """Take a contiguous view's pages off this process: they stay in the system's cache, and come back when read.

    Without this, a process that reads a large file once counts all of it as its own memory (peak RSS). Arrays that
    are not views of a mapped file, and platforms without madvise, are left as they are.
    """
    base = view
    while isinstance(base, np.ndarray):
        base = base.base
    mapping = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not view.nbytes:
        return
    start = view.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, first, start + view.nbytes - first)
