"""Files of machine code: one for each kernel, which is unpickled and run, so who wrote it and what it holds is checked.

A file begins with a digest of what follows and of what it is for. The digest finds damage and exchanged files; that
nobody else wrote them follows from the owners and modes of folder and file (lapinfer/private.py).
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lapinfer.errors import InputError
from lapinfer.home import cache_folder, expanded, home
from lapinfer.outputs import begins_with
from lapinfer.private import private_folder, read_private, write_private

MAGIC = b"lapinfer machine code 1\n"
LARGEST = 64 << 20
"""Bytes; kernels take some ten thousand."""
FOLDER, SUFFIX = "kernels", ".nbi"
"""Of folders for each version, in a cache folder; and of a kernel's file."""


def _bases() -> list[Path]:
    """Folders to keep machine code in: NUMBA_CACHE_DIR or LAPINFER_HOME, this user's cache folder, temporary files."""
    bases = []
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        bases.append(expanded(chosen))
    for folder in ([] if chosen else [home]) + [cache_folder]:
        with suppress(InputError):
            bases.append(folder())
    own = f"lapinfer-{os.geteuid()}" if hasattr(os, "geteuid") else "lapinfer"
    with suppress(FileNotFoundError):  # nothing that can be written
        bases.append(Path(tempfile.gettempdir()) / own)
    return bases


@dataclass(frozen=True, slots=True)
class Store:
    """Files of machine code of one version of the sources.

    folder: None if there is none that nobody else can write to. notice: for people, if it is not the preferred one.
    """

    version: str
    folder: Path | None
    notice: str | None

    def read(self, kernel: str, kind: str) -> bytes | None:
        """What was written for a kernel of this kind; None if that is missing, damaged, or could be somebody else's."""
        if self.folder is None:
            return None
        data = read_private(self.path(kernel), LARGEST)
        begin = len(MAGIC) + hashlib.sha256().digest_size
        if data is None or data[:begin] != MAGIC + self._digest(kernel, kind, data[begin:]):
            return None
        return data[begin:]

    def write(self, kernel: str, kind: str, data: bytes) -> bool:
        """Whether it could be written."""
        if self.folder is None:
            return False
        try:
            write_private(self.path(kernel), MAGIC + self._digest(kernel, kind, data) + data)
        except OSError:  # the disk is full, say
            return False
        return True

    def path(self, kernel: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kernel}{SUFFIX}"

    def _digest(self, kernel: str, kind: str, data: bytes) -> bytes:
        return hashlib.sha256("\0".join((self.version, kernel, kind, "")).encode() + data).digest()


def is_machine_code(path: Path) -> bool:
    """Whether a file is one of ours, by how it begins."""
    return begins_with(path, len(MAGIC)) == MAGIC


@functools.cache
def open_store(version: str) -> Store:
    """The store in the first folder that can be used."""
    reason = ""
    for base in _bases():
        try:
            folder = private_folder(base, FOLDER, version)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} is read-only")
        except OSError as error:
            reason = reason or (f"{error.filename}: {error.strerror}" if error.strerror else str(error))
            continue
        notice = f"note: machine code of kernels is kept in {folder.parent}, because {reason}" if reason else None
        return Store(version, folder, notice)
    reason = reason or "there is no folder to keep them in"
    return Store(version, None, f"note: kernels are compiled again by every process, because {reason}")
