"""This computer and this process on it: processors, memory, caches and names. Standard library alone.

What a container allows is less than what the computer has: limits.py reads it. `root` is where the system's own files
are looked for.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from lapinfer import __version__, limits

LARGEST_PAGE = 16384
"""Bytes of a page of memory where they are largest (Apple): what begins at multiples of it can be mapped anywhere."""

_M_ARENA_MAX = -8  # glibc's malloc.h


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def description() -> dict[str, str | int | None]:
    """What stands beside figures in a file."""
    return {
        "cpu": cpu_name(), "threads": os.cpu_count(), "system": platform.platform(terse=True),
        "python": platform.python_version(), "lapinfer": __version__,
    }  # fmt: skip


def default_threads(root: Path = limits.ROOT) -> int:
    """Processors that this process may use.

    A container's share of time counts in whole processors, at least one: threads beyond it would be stopped in the
    middle of a step, and all others wait for them.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = limits.processors(root)
    return there if allowed is None else max(min(there, int(allowed)), 1)


def largest_cache() -> int:
    """Bytes of the largest cache that a core uses, as Linux tells it; 0 on other systems."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
        except (OSError, ValueError, LookupError):
            continue
    return max(sizes, default=0)


def beyond_caches() -> int:
    """Bytes of weights, read in turn, of which caches keep next to nothing.

    A server's last cache may hold more than a laptop's memory bus is ever asked for.
    """
    return min(max(256 << 20, 4 * largest_cache()), 2 << 30)


def available_memory(root: Path = limits.ROOT) -> int | None:
    """Bytes of memory that can still be had, or None where the platform does not tell.

    The least of what the computer has, what a container allows, and what this process may address (ulimit -v).
    """
    left = (_free_memory(root), limits.memory(root), _addressable())
    return min((count for count in left if count is not None), default=None)


def _free_memory(root: Path) -> int | None:
    try:
        with open(root / "proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _addressable() -> int | None:
    """Bytes of address space that are left; None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return max(limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0)
    except (OSError, ValueError):
        return limit


def resident_bytes() -> int:
    """Memory of this process now; its peak where the platform tells no better, 0 where it tells neither."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return peak_resident_bytes() or 0


def peak_resident_bytes() -> int | None:
    """The most memory that this process has had; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def major_faults() -> int | None:
    """Pages that this process has waited for until they were read from a disk; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, so that `resident_bytes` does not count it."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


def keep_one_heap() -> None:
    """Let all threads allocate from one heap: for programs that run long, with many threads.

    The GNU C library gives each thread a heap of its own, up to eight a core, and what one has freed serves no other.
    So a server's memory creeps up for hours, though nothing is kept. Python allocates under its lock and kernels not
    at all, so heaps of their own bring threads nothing here.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
