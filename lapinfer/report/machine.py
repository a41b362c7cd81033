"""Which computer figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from lapinfer import __version__


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def cache_bytes() -> int:
    """Of the largest cache of a core, as Linux tells it; 0 where nobody does."""
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
    return min(max(256 << 20, 4 * cache_bytes()), 2 << 30)


def machine() -> dict[str, str | int | None]:
    """What stands beside figures in a file."""
    return {
        "cpu": cpu_name(), "threads": os.cpu_count(), "system": platform.platform(terse=True),
        "python": platform.python_version(), "lapinfer": __version__,
    }  # fmt: skip
