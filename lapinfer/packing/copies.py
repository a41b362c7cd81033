"""Packed copies in the cache: their places, what they were made of, when they were last used, and who uses them now.

Beside the weights of a copy lies a note, a line of JSON for each path that its checkpoint was found under. Whoever
packs or runs the copy holds the note's lock, shared with others; whoever removes the copy holds it alone. The note's
time of modification is that of the last use. A copy without a note was made before there were notes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.home import FILE_NAME, is_packed
from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.locks import wait_for_lock
from lapinfer.outputs import NOT_FOLLOWED
from lapinfer.private import make_folders
from lapinfer.progress import Phase, Progress, silent

NOTE = "sources.jsonl"
LAYOUT = 7
"""Of packed copies: a new number makes all of them anew."""
LONGEST_NOTE = 64 << 10
"""Bytes: no more is read, nor written, whatever a checkpoint is called."""
TRIES = 100
"""To make a note where others remove it."""
READING = Phase("reading", "bytes")


def cached_folder(checkpoint: Checkpoint, quant: str, home: Path, progress: Progress = silent) -> Path:
    """Where the packed copy of a checkpoint belongs: its content and the quant asked for decide that.

    progress: of reading large files, which is done once.
    """
    identity = checkpoint.contents.identity(lambda done, total: progress(READING, done, total))
    return home / f"{checkpoint.name}-{quant}-{_digest(identity, quant)}"


def _digest(identity: str, quant: str) -> str:
    return hashlib.sha256(f"{identity} {quant} {LAYOUT}".encode()).hexdigest()[:16]


def is_outdated(folder: Path, metadata: Mapping[str, str]) -> bool:
    """Whether a copy is one that this version makes anew, by its name; folders that a user has named are none."""
    if re.fullmatch(r".+-[a-z0-9_]+-[0-9a-f]{12,16}", folder.name, re.DOTALL) is None or "source" not in metadata:
        return False
    return not folder.name.endswith(_digest(metadata["source"], metadata.get("quant", "")))


def metadata_of(folder: Path) -> dict[str, str]:
    """What a copy says of itself; nothing where it is not whole."""
    return read_metadata(folder / FILE_NAME) if is_packed(folder) else {}


def sources(folder: Path) -> list[Path]:
    """Where the checkpoint of a copy was found, as far as that is noted."""
    found: list[Path] = []
    try:
        with open(folder / NOTE, "rb", opener=_opener) as file:
            lines = file.read(LONGEST_NOTE).splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, str) and said and "\0" not in said:
                found.append(Path(said))
    return found


def last_used(folder: Path) -> float | None:
    """Seconds since 1970; None where it is not noted."""
    try:
        return os.lstat(folder / NOTE).st_mtime
    except OSError:
        return None


class Use:
    """A copy that this process packs or runs: nobody removes it before `close`, or the end of the process.

    Nothing is held where the folder cannot be written or read: then nobody can remove it, either.
    """

    def __init__(
        self, folder: Path, source: Path | None = None, told: Callable[[str], object] = lambda line: None
    ) -> None:
        """source: is noted, as where the checkpoint lies. told: hears whom this waits for, who removes it just now."""
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = _held(folder / NOTE, lambda who: told(f"{folder}: waiting for {who}: it removes this"))
        if self._descriptor >= 0:
            with suppress(OSError):
                self._note(source)
                os.utime(folder / NOTE)

    def _note(self, source: Path | None) -> None:
        if source is not None:
            line = json.dumps(os.path.abspath(source)).encode() + b"\n"
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            before = os.read(self._descriptor, LONGEST_NOTE)
            if line not in before.splitlines(keepends=True) and len(before) + len(line) <= LONGEST_NOTE:
                os.write(self._descriptor, line)  # whole, at the end, whoever else writes

    def close(self, close: Callable[[int], None] = os.close) -> None:  # held: `os` is gone when Python ends
        if self._descriptor >= 0:
            close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Use:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _held(note: Path, told: Callable[[str], object]) -> int:
    """An open note whose lock is shared. Who removed the copy meanwhile had the lock of a file that is gone."""
    for _ in range(TRIES):
        try:
            make_folders(note.parent)
            descriptor = os.open(note, os.O_RDWR | os.O_CREAT | os.O_APPEND | NOT_FOLLOWED, 0o600)
        except FileNotFoundError:  # removed between the two
            continue
        except OSError:
            descriptor = os.open(note, os.O_RDONLY | NOT_FOLLOWED)
        try:
            wait_for_lock(descriptor, told, shared=True)
            if os.path.samestat(os.lstat(note), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise FileNotFoundError(f"{note}: was removed again and again")


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | NOT_FOLLOWED | getattr(os, "O_NONBLOCK", 0))


__all__ = ["NOTE", "Use", "cached_folder", "is_outdated", "last_used", "metadata_of", "sources"]
