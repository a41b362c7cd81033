"""Pages of mapped files: those are let go that will not be read again soon."""

from __future__ import annotations

import mmap

import numpy as np


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
