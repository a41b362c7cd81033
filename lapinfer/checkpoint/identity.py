"""What makes two checkpoints the same: their config and all bytes of their weights, not names, places or times.

A small checkpoint is read in full at every start. Of a large one, each file is read once; its digest is remembered
with what the system then said of the file: device, inode, size, and its times. One of these, `ctime`, cannot be set:
whatever writes to a file, replaces it or restores its modification time, changes it. Where the system has no such time
(Windows), or the file had only just been written (a second write could fall into the same tick of its clock), nothing
is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapinfer.checkpoint.reading import ChangedError, OpenFile
from lapinfer.home import home
from lapinfer.machine import default_threads
from lapinfer.private import private_folder, read_private, write_private

SMALL = 16 << 20
"""Bytes of a checkpoint that is read at every start: 10 ms."""
PIECE = 16 << 20
"""Bytes that a thread digests at a time. The digest of a large file is that of its pieces' digests."""
TICK_NS = 2_000_000_000
"""The clock of no file system is coarser."""
LONGEST_NOTE = 200
TOGETHER = "+"
"""Between the identities of a checkpoint and of what is added to it."""
HAS_CHANGE_TIME = sys.platform != "win32"
"""Elsewhere st_ctime is the time of creation, which says nothing of what was written since."""

Progress = Callable[[int, int], None]
"""Called with the bytes read and those of all files, where large ones have to be read."""


@dataclass(frozen=True, slots=True)
class State:
    """What the system says of a file: as long as that is the same, so is what it holds."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> State:
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def is_trusted(self, now_ns: int) -> bool:
        """Whether any write from now on would show."""
        return HAS_CHANGE_TIME and max(self.modified_ns, self.changed_ns) + TICK_NS < now_ns


class Contents:
    """The open files of a checkpoint: gives the identity, and sees changes from outside.

    described: what decides besides the files, as JSON has it: the config.
    """

    def __init__(self, described: Any, files: Iterable[OpenFile]) -> None:
        self._described = described
        self._files = {file.path: file for file in sorted(files, key=lambda file: file.path)}
        self._states = {path: State.of(file.opened) for path, file in self._files.items()}
        now = time.time_ns()
        self._trusted = {path for path, state in self._states.items() if state.is_trusted(now)}
        self._digests: dict[Path, bytes] = {}

    @property
    def paths(self) -> list[Path]:
        """The files, by the names under which they were opened."""
        return list(self._files)

    def identity(self, progress: Progress = lambda done, total: None) -> str:
        """32 hexadecimal digits: the same for the same config and weights, and only for these."""
        total, done = sum(file.nbytes for file in self._files.values()), 0
        for path, file in self._files.items():
            if path not in self._digests:
                before = done
                self._digests[path] = (
                    content_digest(file) if total <= SMALL
                    else self._large(path, lambda more, before=before: progress(before + more, total))
                )  # fmt: skip
            done += file.nbytes
        digest = hashlib.sha256(json.dumps(self._described, sort_keys=True).encode())
        for found in self._digests.values():
            digest.update(found)
        return digest.hexdigest()[:32]

    def _large(self, path: Path, progress: Callable[[int], None]) -> bytes:
        """The digest of one of the files: remembered, or read."""
        state, known = self._states[path], path in self._trusted and self._is_as_opened(path)
        if known and (remembered := _remembered(state)) is not None:
            return remembered
        found = content_digest(self._files[path], progress)
        if known and self._is_as_opened(path):
            _remember(state, found)
        return found

    def _is_as_opened(self, path: Path) -> bool:
        """Whether the path still leads to the file that was opened, and nothing has been written to that."""
        try:
            return State.of(os.stat(path)) == self._states[path]
        except OSError:
            return False

    def check_unchanged(self, thoroughly: bool = False) -> None:
        """ChangedError when the checkpoint is another one than that whose identity was given.

        The system is asked, and files are read again where it says that they have changed (some file systems number
        theirs anew now and then); thoroughly: also those that were so new when they were opened that it cannot know.
        """
        self.identity()
        for path in self._files:
            if not self._is_as_opened(path) or (thoroughly and path not in self._trusted):
                self._read_again(path)

    def _read_again(self, path: Path) -> None:
        file = OpenFile(path)
        state = State.of(file.opened)
        is_trusted = state.is_trusted(time.time_ns())
        if content_digest(file) != self._digests[path]:
            raise ChangedError(f"{path}: changed while it was read, and nothing is kept of it; run this again")
        self._states[path] = state
        (self._trusted.add if is_trusted else self._trusted.discard)(path)


class Together(Contents):
    """The contents of a checkpoint and of what is added to it: the identity is that of both, with a + between."""

    def __init__(self, first: Contents, more: Contents) -> None:
        self._each = first, more

    @property
    def paths(self) -> list[Path]:
        return [path for each in self._each for path in each.paths]

    def identity(self, progress: Progress = lambda done, total: None) -> str:
        return TOGETHER.join(each.identity(progress) for each in self._each)

    def check_unchanged(self, thoroughly: bool = False) -> None:
        for each in self._each:
            each.check_unchanged(thoroughly)


def identity_alone(identity: str) -> str:
    """The identity of a checkpoint without what was added to it."""
    return identity.partition(TOGETHER)[0]


def content_digest(file: OpenFile, progress: Callable[[int], None] = lambda done: None) -> bytes:
    """SHA-256 of a small file, or of the digests of a large one's pieces, in as many threads as there are cores."""

    def of_piece(start: int) -> bytes:
        digest = hashlib.sha256()
        for piece in file.pieces(start, min(start + PIECE, file.nbytes)):
            digest.update(piece)
        return digest.digest()

    if file.nbytes <= PIECE:
        return of_piece(0)
    from concurrent.futures import ThreadPoolExecutor

    digest, done, starts = hashlib.sha256(), 0, range(0, file.nbytes, PIECE)
    with ThreadPoolExecutor(default_threads()) as pool:
        try:
            pieces = pool.map(of_piece, starts)
        except RuntimeError:  # no thread is to be had
            pool.shutdown(cancel_futures=True)
            pieces = map(of_piece, starts)
        for found in pieces:
            digest.update(found)
            done = min(done + PIECE, file.nbytes)
            progress(done)
    return digest.digest()


def _note(state: State) -> Path:
    """Where the digest of a file is remembered: a place for each file, so that old ones make room.

    Raises OSError where others could write there: a note of theirs would give a file the packed copy of another.
    """
    return private_folder(home(), "identities") / f"{state.device:x}-{state.inode:x}"


def _remembered(state: State) -> bytes | None:
    try:
        note = read_private(_note(state), at_most=LONGEST_NOTE) or b""
        key, _, found = note.decode("ascii").strip().partition(" ")
        return bytes.fromhex(found) if key == _key(state) and len(found) == 64 else None
    except (OSError, ValueError):
        return None


def _remember(state: State, found: bytes) -> None:
    """Where the home cannot be written, or others can, the file is read again next time."""
    with suppress(OSError):
        write_private(_note(state), f"{_key(state)} {found.hex()}\n".encode("ascii"))


def _key(state: State) -> str:
    return f"{state.size:x}-{state.modified_ns:x}-{state.changed_ns:x}"
