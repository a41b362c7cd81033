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


def machine() -> dict[str, str | int | None]:
    """What stands beside figures in a file."""
    return {
        "cpu": cpu_name(), "threads": os.cpu_count(), "system": platform.platform(terse=True),
        "python": platform.python_version(), "lapinfer": __version__,
    }  # fmt: skip
