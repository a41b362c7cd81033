"""All kernels by name: imports the files that register them, and loads what a plan names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence

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
    parcels,
    place,
    probe,
    recurrence,
    route,
    router,
    sort,
    team,
    tree,
)
from lapinfer.progress import Phase, Progress, silent

__all__ = [
    "attention", "best", "convolution", "elementwise", "experts", "leaves", "load", "matmul", "parcels", "place",
    "probe", "recurrence", "route", "router", "sort", "team", "tree",
]  # fmt: skip


def load(names: Iterable[str], progress: Progress = silent, *, apart: bool = False) -> dict[str, int]:
    """Machine code addresses of kernels; those that are not stored are compiled.

    apart: compile in a process of its own, since the compiler keeps some hundred MB.
    """
    wanted = sorted(set(names))
    missing = [name for name in wanted if not cache.cached(name)]
    if missing:
        store = cache.store()
        if store.notice:
            progress(store.notice)
        often = "once; " if store.folder else ""
        said = f"compiling {len(missing)} kernels for this processor ({often}about {2 * len(missing)} s)"
        phase = Phase("compiling", "kernels", said=said)
        elsewhere = _compile_apart(missing, phase, progress) if apart and store.folder else 0
        for done, name in enumerate(missing):  # where that has failed, here
            progress(phase, max(done, elsewhere), len(missing))
            check()
            cache.address(name)
        progress(phase, len(missing), len(missing))
    addresses = {}
    for name in wanted:
        check()
        addresses[name] = cache.address(name)
    return addresses


def _compile_apart(missing: Sequence[str], phase: Phase, progress: Progress) -> int:
    """Compile kernels into the store in another process, which tells how many are done; the last it told."""
    code = (  # Ctrl-C reaches this process, too
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "from lapinfer.kernels import library;"
        f"library.load({list(missing)!r}, lambda phase, *done: print(*done, flush=True))"
    )
    command, done = [sys.executable, "-c", code], 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if counts := line.split():
                done = int(counts[0])
                progress(phase, done, len(missing))
    return done
