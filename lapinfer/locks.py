"""Locks on files between processes: who holds one, and waiting for it with a word. Standard library alone.

A lock goes with the open file that has it. On Windows it keeps others from reading the first byte, and folders cannot
be opened: there a file of its own is locked (`LOCK`), which nobody reads.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lapinfer-lock"
"""The name of a file that is there to be locked."""
LOOK = 0.1
"""Seconds between two tries."""


def locked(descriptor: int, *, shared: bool = False) -> bool:
    """Whether this process has the lock of an open file now.

    shared: with others who share it, which keeps away those who want it alone. On Windows that is nothing: an open file
    cannot be removed there.
    """
    if sys.platform == "win32":
        if shared:
            return True
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # the first byte, which need not be there
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, told: Callable[[str], object], *, shared: bool = False) -> None:
    """Have the lock of an open file. `told` hears who has it, in words, whenever that changes."""
    before = ""
    while not locked(descriptor, shared=shared):
        now = holder(descriptor)
        if now != before:
            told(now)
            before = now
        time.sleep(LOOK)


def holder(descriptor: int) -> str:
    """Who has the lock of an open file, as far as Linux tells: a process, and whether it is stopped."""
    if sys.platform == "win32":
        return "another process"
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        process = next(fields[4] for fields in lines if "->" not in fields and fields[1:6:4] == ["FLOCK", place])
        state = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        )
    except (OSError, ValueError, StopIteration, IndexError):
        return "another process"
    if state in "Tt":
        return f"process {process}, which is stopped (kill -CONT {process} lets it go on, kill {process} ends it)"
    return f"process {process}"
