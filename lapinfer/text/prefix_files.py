"""Files of prefixes: what a slot holds after some ids, one file each, written whole or not at all, and never trusted.

    magic      16 bytes
    digests    SHA-256 of what the head is of (key, digest of the body) and of itself; SHA-256 of the body
    head       uint32 count of ids, int32 [count] ids
    body       the arrays of a SlotState, layer by layer, as runtime/slots.layout has them

Integers are little-endian. A file lies in folder/KEY/, KEY being that of the model, under a name made of its ids. Its
size follows from the count, so nothing is read, nor allocated, that a file merely claims. Its name begins with a digest
of the first SHORTEST ids: heads are read of files that can be of use, and of no others. The time of its last use is
its modification time. Who writes or removes files holds the lock of the folder; readers hold none: a file that was
opened stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lapinfer.errors import InputError
from lapinfer.locks import LOOK, locked
from lapinfer.options import KVName
from lapinfer.outputs import PART, whole_file
from lapinfer.private import open_private, private_folder
from lapinfer.progress import Notice
from lapinfer.runtime.slots import SlotState, can_shorten, layout
from lapinfer.spec import ModelSpec

MAGIC = b"lapinfer prefix1"
DIGEST = hashlib.sha256().digest_size
FIXED = len(MAGIC) + 2 * DIGEST + 4
"""Bytes before the ids."""
SUFFIX = ".prefix"
SHORTEST = 32
"""Ids: fewer are read again as quickly."""
PATIENCE = 2.0
"""Seconds to wait for another process that writes; after that a prefix is not kept."""
PAUSE = 60.0
"""Seconds for which nothing is written after that was refused."""
MOST_IDS = 1 << 24
FIRST = 16
"""Characters of a name that tell the first ids."""


class _DamagedError(Exception):
    """A file is not what was written."""


class PrefixFiles:
    """The files of one model, in a folder of those of several; `limit` is of all of them together, in bytes."""

    def __init__(self, folder: Path, key: str, spec: ModelSpec, kind: KVName, limit: int, notice: Notice) -> None:
        self._folder, self._key, self._spec = folder, key, spec
        self._kind: KVName = kind
        self._limit, self._notice = limit, notice
        self._ids: dict[str, np.ndarray] = {}
        """What is known of the files by their names."""
        self._known = threading.Lock()
        self._told, self._pause = False, 0.0

    def add(self, ids: np.ndarray, state: SlotState) -> bool:
        """Whether there is a file of these ids now; those of what it contains, as its beginning, go."""
        size = FIXED + ids.nbytes + state.nbytes
        if size > self._limit or not SHORTEST <= len(ids) <= MOST_IDS or time.monotonic() < self._pause:
            return False
        try:
            place = private_folder(self._folder, self._key)
            with self._lock() as has:
                if not has:
                    return False
                self._make_room(size)
                path = place / _name(ids)
                with whole_file(path) as part:
                    part.chmod(0o600)
                    with part.open("wb") as file:
                        self._write(file, ids, state)
                self._forget_beginnings(ids)
        except (OSError, InputError) as error:  # the disk is full, say
            self._pause = time.monotonic() + PAUSE
            if not self._told:
                self._told = True
                self._notice(f"note: no prefix is kept in {self._folder} for now: {error}")
            return False
        with self._known:
            self._ids[path.name] = ids
        return True

    def known(self, ids: np.ndarray) -> tuple[int, int]:
        """How many ids the best file can give a slot, and how many any file begins with."""
        found = self._agreeing(ids)
        return max((count for count, _, gives in found if gives), default=0), max((n for n, *_ in found), default=0)

    def find(self, ids: np.ndarray) -> tuple[int, np.ndarray, SlotState] | None:
        """How many of `ids` the best file can give a slot, its own ids, and what a slot held after all of these."""
        for count, name, gives in self._agreeing(ids):
            path = self._folder / self._key / name
            if gives and (found := self._read(path)) is not None:
                with suppress(OSError):
                    os.utime(path)
                return count, *found
        return None

    def nbytes(self) -> int:
        """Of this model's files."""
        with suppress(OSError):
            return sum(entry.stat().st_size for entry in os.scandir(self._folder / self._key))
        return 0

    def _agreeing(self, ids: np.ndarray) -> list[tuple[int, str, bool]]:
        """(how many ids it begins with, its name, whether it can give a slot these), best first."""
        found: list[tuple[int, int, str]] = []
        for name, stored in self._look(ids).items():
            if count := agreeing(stored, ids):
                found.append((-count, len(stored), name))
        return [(-count, name, can_shorten(self._spec, size, -count)) for count, size, name in sorted(found)]

    def _look(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The files that begin like these ids; those that other processes have written, or removed, become known."""
        if len(ids) < SHORTEST:
            return {}
        first = _name(ids)[:FIRST]
        try:
            names = {entry.name for entry in os.scandir(self._folder / self._key) if entry.name.endswith(SUFFIX)}
        except OSError:
            names = set()
        with self._known:
            self._ids = {name: ids for name, ids in self._ids.items() if name in names}
            alike = {name: self._ids.get(name) for name in sorted(names) if name.startswith(first)}
        for name in [name for name, stored in alike.items() if stored is None]:
            path = self._folder / self._key / name
            with self._opened(path) as file:
                if file is not None:
                    alike[name] = head = self._head(file, path)[0]
                    with self._known:
                        self._ids[name] = head
        return {name: stored for name, stored in alike.items() if stored is not None}

    def _forget_beginnings(self, ids: np.ndarray) -> None:
        """Remove files that a new one has made superfluous."""
        with self._known:
            known = dict(self._ids)
        for name, stored in known.items():
            shorter = len(stored) < len(ids) and agreeing(stored, ids) == len(stored)
            if shorter and can_shorten(self._spec, len(ids), len(stored)):
                with suppress(OSError):
                    (self._folder / self._key / name).unlink()
                with self._known:
                    self._ids.pop(name, None)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO | None]:
        """The file, if it is as private as it must be; foreign ones are removed, and damaged ones when it is closed."""
        with open_private(path, self._limit) as file:
            damaged = file is None and os.path.lexists(path)
            try:
                yield file
            except _DamagedError:
                damaged = True
        if damaged:  # not while it is open, which Windows refuses
            self._remove(path)

    def _head(self, file: BinaryIO, path: Path) -> tuple[np.ndarray, bytes]:
        """The ids, and the digest that the body must have."""
        size = os.fstat(file.fileno()).st_size
        fixed = file.read(FIXED)
        count = int.from_bytes(fixed[-4:], "little")
        if len(fixed) == FIXED and fixed.startswith(MAGIC) and 1 <= count <= MOST_IDS:
            whole = FIXED + 4 * count + self._body_bytes(count)
            if size == whole:
                raw = file.read(4 * count)
                ids, body = np.frombuffer(raw, "<i4").astype(np.int32), fixed[len(MAGIC) + DIGEST : -4]
                is_whole = fixed[len(MAGIC) : len(MAGIC) + DIGEST] == self._digest(ids, body)
                if is_whole and path.name == _name(ids):
                    return ids, body
        raise _DamagedError

    def _read(self, path: Path) -> tuple[np.ndarray, SlotState] | None:
        """The ids and the state in a file; None, and the file removed, where it is damaged."""
        with self._opened(path) as file:
            if file is None:
                with self._known:
                    self._ids.pop(path.name, None)
                return None
            (ids, expected), digest = self._head(file, path), hashlib.sha256()
            layers: list[tuple[np.ndarray, ...]] = []
            for shapes in layout(self._spec, self._kind, len(ids)):
                arrays = tuple(np.empty(shape, kind) for shape, kind in shapes)
                for array in arrays:
                    file.readinto(array.data.cast("B"))  # type: ignore[attr-defined]
                    digest.update(array.data)
                layers.append(arrays)
            if digest.digest() != expected:
                raise _DamagedError
            return ids, SlotState(len(ids), (self._kind,) * len(self._spec.layers), tuple(layers))
        return None

    def _write(self, file: BinaryIO, ids: np.ndarray, state: SlotState) -> None:
        arrays = [array for layer in state.layers for array in layer]
        body = hashlib.sha256()
        for array in arrays:
            body.update(array.data)
        head = MAGIC + self._digest(ids, body.digest()) + body.digest()
        file.write(head + len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        for array in arrays:
            file.write(array.data)

    def _digest(self, ids: np.ndarray, body: bytes) -> bytes:
        return hashlib.sha256(f"{self._key} {sys.byteorder} ".encode() + body + ids.astype("<i4").tobytes()).digest()

    def _body_bytes(self, count: int) -> int:
        """Bytes of the arrays of `count` positions, in numbers that do not overflow."""
        return sum(
            int(np.prod(shape, dtype=object)) * kind.itemsize
            for shapes in layout(self._spec, self._kind, count)
            for shape, kind in shapes
        )

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago, of any model, and what killed processes have left."""
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*"):
            with suppress(OSError):
                if path.name.startswith(PART):  # nobody else is writing
                    path.unlink()
                elif path.name.endswith(SUFFIX):
                    status = path.lstat()
                    files.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if used + size <= self._limit:
                return
            with suppress(OSError):
                path.unlink()
                used -= freed

    def _remove(self, path: Path) -> None:
        """A file that is not what was written goes, with a word."""
        with suppress(OSError):
            path.unlink()
            self._notice(
                f"note: {path} was damaged, too large or another's: it is removed, and the prompt is read again"
            )
        with self._known:
            self._ids.pop(path.name, None)

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether this process alone writes here, for the block."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self._folder / "lock", flags, 0o600)
        try:
            yield _soon(lambda: locked(descriptor))
        finally:
            os.close(descriptor)


def _soon(has: Callable[[], bool]) -> bool:
    """Whether something is so within PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while not has():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK)
    return True


def _name(ids: np.ndarray) -> str:
    first, whole = (hashlib.sha256(part.astype("<i4").tobytes()).hexdigest() for part in (ids[:SHORTEST], ids))
    return f"{first[:FIRST]}-{whole[:32]}{SUFFIX}"


def agreeing(stored: np.ndarray, ids: np.ndarray) -> int:
    """How many ids both begin with."""
    most = min(len(stored), len(ids))
    differ = np.flatnonzero(stored[:most] != ids[:most])
    return int(differ[0]) if len(differ) else most
