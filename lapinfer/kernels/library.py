"""All kernels by name: imports the files that register them, and loads what a plan names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable

from lapinfer.interrupts import check
from lapinfer.kernels import (
    attention,
    best,
    cache,
    convolution,
    elementwise,
    experts,
    leaves,
    matmul,
    place,
    probe,
    route,
    router,
    sort,
    team,
    tree,
)

__all__ = [
    "attention", "best", "convolution", "elementwise", "experts", "leaves", "load", "matmul", "place", "probe",
    "route", "router", "sort", "team", "tree",
]  # fmt: skip


def load(names: Iterable[str], notice: Callable[[str], None] | None = None, apart: bool = False) -> dict[str, int]:
    """Machine code addresses of kernels; those that are not stored are compiled, which `notice` is told once.

    apart: compile in a process of its own, since the compiler keeps some hundred MB.
    """
    wanted = sorted(set(names))
    missing = [name for name in wanted if not cache.cached(name)]
    store = cache.store()
    if missing and notice is not None:
        if store.notice:
            notice(store.notice)
        often = "once; " if store.folder else ""
        notice(f"compiling {len(missing)} kernels for this processor ({often}about {2 * len(missing)} s)")
    if missing and apart and store.folder:  # where that fails, the next line does it here
        code = (  # Ctrl-C reaches this process, too
            "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
            f"from lapinfer.kernels import library; library.load({missing!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
    addresses = {}
    for name in wanted:
        check()
        addresses[name] = cache.address(name)
    return addresses
