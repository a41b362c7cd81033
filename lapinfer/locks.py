"""Locks on files between processes: who holds one, and waiting for it with a word. Standard library alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HAS_LOCKS = fcntl is not None
LOOK = 0.1
"""Seconds between two tries."""


def locked(descriptor: int, *, shared: bool = False) -> bool:
    """Whether this process has the lock of an open file now; always where the platform has none.

    shared: with others who share it, which keeps away those who want it alone.
    """
    if fcntl is None:
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
