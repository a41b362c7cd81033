"""Files that lapinfer may remove, and their removal: never through a link, and never while somebody uses them.

Whoever decides that something is lapinfer's own says by which paths and locks; here nothing else is touched.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lapinfer.digits import size
from lapinfer.locks import holder, locked
from lapinfer.outputs import KEPT_WHILE_OPEN, NOT_FOLLOWED


class InUseError(Exception):
    """Another process uses what was to be removed."""


@dataclass(frozen=True, slots=True)
class Owned:
    """One thing that can be removed, as a whole.

    what, why: in words, for people. paths: files, and folders that have nothing of anybody else's, in the order of
    their removal. folders: go where they are empty then. locks: files whose lock users hold.
    """

    what: str
    why: str
    path: str
    bytes: int
    paths: tuple[Path, ...]
    folders: tuple[Path, ...] = ()
    locks: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{size(self.bytes):>8}  {self.what}{self.why and f': {self.why}'}  {self.path}"


def removed(owned: Owned) -> str | None:
    """Remove it; None, or in a line why not all of it is gone."""
    try:
        with ExitStack() as held:
            for lock in owned.locks:
                held.enter_context(_alone(lock))
            for path in owned.paths:
                _remove(path)
            for folder in owned.folders:
                with suppress(FileNotFoundError):
                    _remove_empty(folder)
    except InUseError as error:
        return f"{owned.what}: in use by {error}; end it first"
    except OSError as error:
        place = error.filename or owned.path
        return f"{place}: cannot be removed: {error.strerror or error}"
    return None


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):  # another process removes it, too
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)  # which follows no links
        else:
            os.unlink(path)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        if not any(folder.iterdir()):
            raise


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """With the lock of a file, if it is there; InUseError where another process has it."""
    if KEPT_WHILE_OPEN:
        yield
        return
    try:
        descriptor = os.open(lock, os.O_RDWR | NOT_FOLLOWED)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            free = locked(descriptor)
        except OSError:  # a file system without locks: what is open there stays readable when it is removed
            free = True
        if not free:
            raise InUseError(holder(descriptor))
        yield
    finally:
        os.close(descriptor)


def is_used(lock: Path) -> bool:
    """Whether another process holds a lock of this file now."""
    try:
        with _alone(lock):
            return False
    except InUseError:
        return True
    except OSError:
        return False


def disk_bytes(*paths: Path) -> int:
    """Bytes on disk of files and of all that is in folders: no links are followed, no file counts twice.

    Of a file with holes, as one is that is being packed, what it has.
    """
    seen: set[tuple[int, int]] = set()
    return sum(_counted(path, seen) for path in paths)


def _counted(path: Path, seen: set[tuple[int, int]]) -> int:
    try:
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                return sum(_counted(Path(entry.path), seen) for entry in entries)
    except OSError:  # gone meanwhile, or another user's
        return 0
    place = found.st_dev, found.st_ino
    if not stat.S_ISREG(found.st_mode) or place in seen:
        return 0
    seen.add(place)
    return min(found.st_size, 512 * getattr(found, "st_blocks", 0) or found.st_size)


def newest(paths: Iterable[Path]) -> float:
    """When the latest of these files, or of those in these folders, was written; 0 of none."""
    latest = 0.0
    for path in paths:
        with suppress(OSError):
            found = os.lstat(path)
            latest = max(latest, found.st_mtime)
            if stat.S_ISDIR(found.st_mode):
                latest = max(latest, newest(path.iterdir()))
    return latest
