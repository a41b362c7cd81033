"""What this computer can do, and what lapinfer makes of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapinfer import __version__
from lapinfer.home import hub_cache, packed_models, pulled_models
from lapinfer.machine import available_memory, cpu_name, default_threads
from lapinfer.report import roofline
from lapinfer.report.bandwidth import read_bandwidth, thread_scaling

if TYPE_CHECKING:
    from lapinfer.kernels.store import Store

TELLING = (
    "avx512vnni", "avx512bw", "avx512f", "avxvnni", "avx2", "fma", "f16c", "sse2", "i8mm", "dotprod", "neon",
)  # fmt: skip
"""Features that decide which instructions kernels are made of."""

SCALING_WANTED = 1.8
"""Two-thread scaling below this: the cores are shared or busy, and comparisons mean little."""


def doctor() -> dict[str, Any]:
    """Processor, chosen instructions, versions, threads, measured scaling and bandwidth, memory and cache folders.

    Takes about three seconds, and some more the first time. What can't be measured says so in its place.
    """
    from lapinfer.kernels import cache
    from lapinfer.kernels.probe import target_features

    have, threads = target_features(), default_threads()
    triple, cpu, _ = cache.target().split(" ", 2)
    isa, instruction = byte_dot_product(have)
    return {
        "cpu": cpu_name(),
        "cores": f"{threads} usable of {os.cpu_count()}",
        "system": platform.platform(terse=True),
        "target": f"{cpu} ({triple})",
        "isa": f"{isa} (LAPINFER_ISA={forced})" if (forced := os.environ.get("LAPINFER_ISA")) else isa,
        "byte_dot_product": instruction,
        "features": [name for name in TELLING if name in have],
        "versions": {"lapinfer": __version__, "python": platform.python_version(), **_versions()},
        "threads": threads,
        "two_thread_scaling": _measured(_scaling) if threads > 1 else "not measured: one usable processor",
        "read_bandwidth": {
            f"on {n} thread{'s' if n > 1 else ''}": _measured(lambda n=n: f"{read_bandwidth(n) / 1e9:.1f} GB/s")
            for n in sorted({1, threads})
        },
        "arithmetic": {
            f"{kind}, {threads} thread{'s' if threads > 1 else ''}": _measured(
                lambda fmt=fmt: f"{roofline.peak(fmt, threads) / 1e9:,.0f} G multiply-adds/s"
            )
            for kind, fmt in roofline.FORMATS.items()
        },
        "memory_available": _size(available_memory()),
        "compiled_kernels": _kernels(cache.store()),
        "packed_models": _folder(packed_models()),
        "pulled_models": _folder(pulled_models()),
        "hugging_face_cache": _folder(hub_cache()),
    }


def byte_dot_product(have: set[str]) -> tuple[str, str]:
    """(name of the level, instruction) that quantized products use on a target with these features."""
    for feature, isa, instruction in (
        ("avx512vnni", "AVX512-VNNI", "vpdpbusd on 512 bits"),
        ("avxvnni", "AVX-VNNI", "vpdpbusd on 256 bits"),
        ("avx512bw", "AVX-512", "vpmaddubsw and vpmaddwd on 512 bits"),
        ("avx2", "AVX2", "vpmaddubsw and vpmaddwd on 256 bits"),
        ("dotprod", "NEON dot product", "sdot on 128 bits"),
        ("x86", "generic x86-64", "pmaddwd on 128 bits"),
    ):
        if feature in have:
            return isa, instruction
    return "generic", "32-bit multiply and add"


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("numpy", "numba", "llvmlite"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _scaling() -> str:
    speedup = thread_scaling()
    busy = " (cores are shared or busy now)" if speedup < SCALING_WANTED else ""
    return f"{speedup:.2f}{busy}"


def _measured(measure: Callable[[], str]) -> str:
    try:
        return measure()
    except MemoryError:
        return "not measured: too little memory"


def _size(size: int | None) -> str:
    return "unknown on this platform" if size is None else f"{size / 1e6:,.0f} MB"


def _folder(folder: Path) -> str:
    """Path, size of what is in it, and whether lapinfer may write there."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    state = _size(_bytes_in(folder)) if folder.is_dir() else "not there yet"
    return f"{folder} ({state}{'' if writable else '; not writable'})"


def _kernels(store: Store) -> str:
    """The folder of machine code, and why it is another than was chosen."""
    kept = "" if store.folder is None else _folder(store.folder.parent)
    return "; ".join(part for part in (kept, store.notice) if part)


def _bytes_in(folder: Path) -> int:
    """Bytes of all files below; links are not followed, unreadable folders count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
