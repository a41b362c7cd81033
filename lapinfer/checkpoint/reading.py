"""Files of weights as they are read: opened once, then read at positions, so that a file cut meanwhile is an error.

A mapped file that is cut shorter ends the process when a page beyond its end is touched (SIGBUS). So files are mapped
only for kernels, which need addresses; whatever is read to be packed, compared or digested is read into memory.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from lapinfer.errors import CheckpointError

STEP = 1 << 20
"""Bytes that are looked at together where a whole file goes by: they stay in a core's cache."""


MOST = 1 << 30
"""Bytes of one call: macOS refuses 2 GiB."""


class ChangedError(CheckpointError):
    """A file isn't what it was when it was opened."""


class OpenFile:
    """A file that stays open: `nbytes` and `opened` are what the system said of it before anything was read.

    CheckpointError for a path that cannot be read, or leads to no file, or to an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise CheckpointError(f"{path}: not a file")
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._descriptor)
            self.opened = os.fstat(self._descriptor)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise self._cannot_be_read(error) from error
        self.nbytes = self.opened.st_size
        if not self.nbytes:
            raise CheckpointError(f"{path}: the file is empty")
        self._seeking = threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes start:stop, new memory [stop - start] of uint8. ChangedError where the file ends before."""
        found = np.empty(stop - start, np.uint8)
        self._fill(found, start)
        return found

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes start:stop as pieces of at most STEP bytes, each in the memory of the one before."""
        buffer = np.empty(min(stop - start, STEP), np.uint8)
        for at in range(start, stop, STEP):
            piece = buffer[: stop - at]
            self._fill(piece, at)
            yield piece.data

    @cached_property
    def mapped(self) -> memoryview:
        """The whole file as memory, read-only: a view of it keeps it. Only for what kernels get addresses of."""
        try:
            return memoryview(mmap.mmap(self._descriptor, self.nbytes, access=mmap.ACCESS_READ))
        except ValueError:
            raise self._changed(self.nbytes, self.nbytes) from None
        except OSError as error:
            raise self._cannot_be_read(error) from error

    def _fill(self, memory: np.ndarray, start: int) -> None:
        left, stop = memory.data, start + memory.nbytes
        while left:
            try:
                count = self._read_into(left[:MOST], stop - len(left))
            except OSError as error:
                raise self._cannot_be_read(error) from error
            if not count:
                raise self._changed(stop - len(left), stop)
            left = left[count:]

    def _read_into(self, memory: memoryview, start: int) -> int:
        """Read what one call gives of the bytes from `start` on; how many these are."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [memory], start)
        with self._seeking:  # Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            found = os.read(self._descriptor, len(memory))
        memory[: len(found)] = found
        return len(found)

    def _changed(self, beyond: int, expected: int) -> ChangedError:
        """What to raise for a file that ends at `beyond` or before, and was expected to reach further."""
        end = min(os.fstat(self._descriptor).st_size, beyond)
        return ChangedError(
            f"{self.path}: changed while it was read: ends at byte {end}, expected {expected}; run this again"
        )

    def _cannot_be_read(self, error: OSError | ValueError) -> CheckpointError:
        return CheckpointError(f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}")
