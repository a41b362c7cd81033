"""Folders and files that nobody else can have written: what is run from a file is only run from such a one.

"Somebody else" is any user but this one and root. On Windows, where folders are a user's own, nothing is checked.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
CHECKED = hasattr(os, "geteuid")
"""Whether this platform has owners to be checked."""
_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
_SAFELY = sum(getattr(os, name, 0) for name in _FLAGS)
"""To open what may be a link, a pipe or a device, without following or waiting."""


def private_folder(base: Path, *names: str) -> Path:
    """The folder `names` below `base`, which nobody else can change or replace; what is missing is made, as 0700.

    Folders `names` of this user that others may write to are closed to them. Raises PermissionError with the reason,
    for people, where that is not enough: a folder is somebody else's, or a link, or somebody else could exchange it.
    """
    base = Path(os.path.realpath(base))  # as far as it exists; a cache folder on another disk is often a link
    place = base.joinpath(*names)
    if CHECKED:  # before anything is made there
        _check(folder for folder in (base, *base.parents) if folder.exists())
    make_folders(place)
    if CHECKED:
        for n in range(len(names)):
            _close(base.joinpath(*names[: n + 1]))
        _check((place, *place.parents), place)
    return place


def make_folders(folder: Path) -> None:
    """Make a folder, and those above that are missing, for this user alone, whatever the umask. Raises OSError."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            with suppress(FileExistsError):  # made by another process just now; if it is a file, the next use says so
                each.mkdir(mode=0o700)


def read_private(path: Path, at_most: int) -> bytes | None:
    """What a file holds; None where `open_private` has none."""
    with open_private(path, at_most) as file:
        return None if file is None else file.read()


@contextmanager
def open_private(path: Path, at_most: int) -> Iterator[BinaryIO | None]:
    """A file to read; None if there is none, it is a link or no file, too large, or others could have written it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except OSError:
        yield None
        return
    try:
        status = os.fstat(descriptor)  # of what is open: nobody can put another file in its place now
        refused = not stat.S_ISREG(status.st_mode) or status.st_size > at_most
        if CHECKED and (status.st_mode & OTHERS_WRITE or status.st_uid not in (os.geteuid(), 0)):
            refused = True
        if refused:
            yield None
            return
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a file as 0600, all of it or nothing; what was there, a link too, is replaced. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _close(folder: Path) -> None:
    """Take others' right to write from a folder of this user's that was made under a generous umask."""
    if folder.is_symlink():
        raise PermissionError(f"{folder} is a link")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_mode & OTHERS_WRITE:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _check(folders: Iterable[Path], place: Path | None = None) -> None:
    """PermissionError with the reason where somebody else can change what is in a folder.

    Those other than `place` may be like /tmp, where others can add entries, but leave this user's alone.
    """
    for folder in folders:
        status = os.lstat(folder)
        owner, mode = status.st_uid, status.st_mode
        if owner not in (os.geteuid(), 0) and (folder == place or owner != _unmapped_user()):
            raise PermissionError(f"{folder} belongs to another user (uid {owner})")
        if not mode & OTHERS_WRITE or (mode & stat.S_ISVTX and folder != place):
            continue
        if mode & stat.S_IWOTH or not _is_own_group(status.st_gid):
            raise PermissionError(f"other users may write to {folder}")


def _unmapped_user() -> int | None:
    """Who owns what belongs to users that a container does not know, the real root among them."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


def _is_own_group(group: int) -> bool:
    """Whether a group is this user's alone, as systems have it that let groups write by default."""
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid())
        found = grp.getgrgid(group)
    except KeyError:
        return False
    return group == user.pw_gid and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
