"""Whether a packed file is what was written: its digests against its bytes, all or as many as are read at once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError
from lapinfer.packing.entries import DIGESTS

AT_ONCE = 300_000_000
"""Bytes of a file that is read in full when it is loaded: in 0.3 s at 1 GB/s."""
SMALL = 1_000_000
"""Of larger files, tensors up to this size are."""
SMALL_TOGETHER = 64_000_000


class DamagedError(CheckpointError):
    """A packed file has other bytes than were written."""


def has_digests(file: SafetensorsFile) -> bool:
    """Whether a packed file was written with digests, as files of older versions were not."""
    return DIGESTS in file.tensors


def damaged(
    file: SafetensorsFile, names: Iterable[str] | None = None, progress: Callable[[int], object] = lambda done: None
) -> list[str]:
    """What of a packed file, header and padding included, has other bytes than were written; all, or these tensors.

    progress: called with the bytes read so far; what it returns, if it is true, ends the work.
    """
    stored = [name for name in file.tensors if name != DIGESTS and not name.startswith(".pad.")]
    expected = _digests(file, len(stored))
    done, found = 0, []
    header = 8 + int.from_bytes(file.file.read(0, 8).tobytes(), "little")
    if hashlib.sha256(file.file.read(0, header).data).digest() != expected[0]:
        found.append("its header")
    wanted = {*file.tensors} if names is None else {*names}
    digests = dict(zip(stored, expected[1:], strict=True))
    for name in file.tensors:
        if name not in wanted or name == DIGESTS:
            continue
        digest, is_zero = hashlib.sha256(), True
        for piece in file.pieces(name):
            if name in digests:
                digest.update(piece)
            else:
                is_zero = is_zero and not np.any(piece)
            done += len(piece)
            if progress(done):
                return found
        if digest.digest() != digests[name] if name in digests else not is_zero:
            found.append(f"tensor {name!r}" if name in digests else "padding")
    return found


def _digests(file: SafetensorsFile, count: int) -> list[bytes]:
    """The digests that a file has of its header and of so many tensors."""
    if not has_digests(file):
        raise CheckpointError(f"{file.path}: has no digests, as it was packed by an older lapinfer; convert it again")
    if (stored := file[DIGESTS]).dtype != "U8" or stored.shape != (1 + count, 32):
        raise DamagedError(
            f"{file.path}: tensor {DIGESTS!r} has {stored.dtype} {stored.shape}, expected U8 {(1 + count, 32)}"
        )
    return [bytes(row) for row in file.rows(DIGESTS)]


def told(path: Path, found: list[str]) -> str:
    """One line about damage."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{path}: {found[0]}{more} differs from what was written: the file is damaged"


class LoadingCheck:
    """Reads a packed file, or what is small of it, while the model is built; `finish` tells what is wrong.

    with LoadingCheck(weights) as check:
        …
        check.finish()
    """

    def __init__(self, file: SafetensorsFile) -> None:
        self._file, self._stopped = file, False
        self._found: list[str] = []
        self._error: CheckpointError | None = None
        self._thread = threading.Thread(target=self._run, name="lapinfer-check")

    def __enter__(self) -> LoadingCheck:
        if has_digests(self._file):
            try:
                self._thread.start()
            except RuntimeError:  # no thread is to be had
                self._run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._found = damaged(self._file, self._names(), lambda done: self._stopped)
        except CheckpointError as error:
            self._error = error

    def _names(self) -> list[str] | None:
        """None: all."""
        if self._file.nbytes <= AT_ONCE:
            return None
        chosen, size = [], 0
        for name, tensor in sorted(self._file.tensors.items(), key=lambda item: item[1].stop - item[1].start):
            size += tensor.stop - tensor.start
            if tensor.stop - tensor.start > SMALL or size > SMALL_TOGETHER:
                break
            chosen.append(name)
        return chosen

    def finish(self) -> None:
        """DamagedError when the file isn't what was written."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._found:
            raise DamagedError(told(self._file.path, self._found))
