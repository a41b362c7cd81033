"""Writing files where a user wants them: whole or not at all, through no link, and over nobody else's.

Every command and function that writes to a path which its caller has named does it by these.
"""

from __future__ import annotations

import errno
import gc
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lapinfer.errors import InputError

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Added to the flags of every file that is opened for writing."""
KEPT_WHILE_OPEN = sys.platform == "win32"
"""Whether the system neither renames, replaces nor removes a file that is open or mapped."""
PART = ".lapinfer-"
"""How names of files begin that are not complete yet."""
OR_FORCE = "name another, or replace it by --force (in Python: force=True)"
FOREIGN = "not written by lapinfer"


def release_files() -> None:
    """Have forgotten objects close and unmap their files, where these could not be replaced or removed else."""
    if KEPT_WHILE_OPEN:
        gc.collect()


def nothing(path: Path) -> bool:
    """Of files that have no mark of ours: none counts as written by us."""
    return False


def check_place(
    path: Path,
    is_ours: Callable[[Path], bool] = nothing,
    *,
    force: bool = False,
    otherwise: str = FOREIGN,
    instead: str = OR_FORCE,
) -> str | None:
    """What somebody else would lose if a file were written at `path`, in words; None: nothing.

    is_ours: whether a file may be replaced, as one that carries the mark of this program; `otherwise` says what others
    are, `instead` what to do then. InputError where there is such a one, or a link, unless `force`; and always for a
    folder, a device or a pipe. A link is never followed: it would be replaced, and what it leads to stays.
    """
    try:
        found = os.lstat(path)
    except OSError:  # nothing is there; whether something can be, is seen when it is written
        return None
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder; name a file to write")
    if stat.S_ISLNK(found.st_mode):
        what = f"a link to {os.readlink(path)}"
    elif not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a device or a pipe; name a file to write")
    elif is_ours(path):
        return None
    else:
        what = f"a file of {found.st_size:,} bytes"
    if not force:
        raise InputError(f"{path} is there already: {what}, {otherwise}; {instead}")
    return f"{path}, {what}"


def replaced(goes: str) -> str:
    """A line about a file that `force` lets go."""
    return f"--force: {goes}, is replaced"


def begins_with(path: Path, count: int) -> bytes:
    """The first bytes of a file, to look for a mark in; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def write_whole(path: Path, content: bytes | str) -> None:
    """A file with this content, or else what was there before. Whether it may go is for `check_place` to say."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_file(path: Path, part: Path | None = None) -> Iterator[Path]:
    """A new, empty file beside `path`, to be written in the block: it takes that name at the end, or goes.

    part: its name, for callers that write there alone: what a kill has left of an earlier one goes. Errors of the
    system are InputErrors that name `path`.
    """
    try:
        if part is None:
            part = path.with_name(f"{PART}{secrets.token_hex(8)}.part")
        else:
            part.unlink(missing_ok=True)
        os.close(os.open(part, NEW | NOT_FOLLOWED, 0o666))
        try:
            yield part
            synced(part)
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def not_followed(path: str, flags: int) -> int:
    """Of `open`, the opener that follows no link."""
    return os.open(path, flags | NOT_FOLLOWED, 0o666)


def append(path: Path, text: str) -> None:
    """Add to a file of ours, or begin it; InputError where it is a link, or the disk is full."""
    try:
        with open(path, "a", encoding="utf-8", opener=not_followed) as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def synced(path: Path) -> None:
    """Have what was written on the disk, safe from a power cut."""
    fd = os.open(path, os.O_RDWR | NOT_FOLLOWED)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cannot_write(path: Path, error: OSError) -> InputError:
    """Why nothing was written, in one line."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        why = f"its folder {path.parent} is not there"
    return InputError(f"{path}: cannot be written: {why}")


def check_writable(path: Path) -> None:
    """InputError when no file can be made beside `path`: called before the work that is to be written there."""
    part = path.with_name(f"{PART}{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(part, NEW | NOT_FOLLOWED, 0o666))
        part.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
