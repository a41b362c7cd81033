"""Compilation of kernels: lazily, once for each version of the sources, to a cache folder of their own.

Numba's own cache looks only at the file of the function itself, so a changed helper would leave stale machine code:
the folder's name is a hash of all sources of kernels and formats, the versions of Numba and llvmlite, and the target.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite

from lapinfer.kernels import isa

isa.apply()  # before the first import of numba

import numba  # noqa: E402
from numba import cfunc, int64, njit, void  # noqa: E402
from numba.core import config  # noqa: E402
from numba.core.registry import cpu_target  # noqa: E402

import lapinfer.quant  # noqa: E402
from lapinfer.kernels.operands import (  # noqa: E402
    ACTIVATIONS,
    FIRST,
    KV_KINDS,
    OPERANDS,
    POLICIES,
    SCORES,
    STEP,
)
from lapinfer.kernels.records import RecordType  # noqa: E402

SIGNATURE = void(int64, int64, int64, int64)
"""What machine code of every kernel takes: four int64."""
jit = njit(error_model="numpy", nogil=True)
"""For functions that kernels call: never raises (division by zero gives inf), inlined by LLVM."""

_functions: dict[str, tuple[Callable, Any]] = {}
_compiled: dict[str, object] = {}
_lock = threading.Lock()
compile_seconds = 0.0
"""Time spent compiling or loading machine code in this process."""
compiled_fresh: list[str] = []
"""Kernels that no cache held."""


def kernel(function: Callable, kind: str = "") -> Callable:
    """Register a kernel under its function's name; nothing is compiled yet.

    kind: of op (OPERANDS), by default this name. Its operands and the step's header arrive as records
    (kernels/records.py); a function that is no kind of op gets plain int64.
    """
    operands = OPERANDS.get(kind or function.__name__)
    signature = SIGNATURE
    if operands is not None:
        signature = void(RecordType(operands, FIRST), RecordType(STEP), int64, int64)
    _functions[function.__name__] = function, signature
    return function


def target() -> str:
    """Triple, CPU and features that code is generated for."""
    return " ".join(cpu_target.target_context.codegen().magic_tuple())


def sources() -> list[Path]:
    """Files whose functions or numbers become machine code: kernels, and what formats say of their layouts.

    What operands.py takes from elsewhere are names whose order gives their numbers; `_fingerprint` has these by value.
    """
    packages = (Path(__file__).parent, Path(lapinfer.quant.__file__).parent)
    return [source for package in packages for source in sorted(package.rglob("*.py"))]


@functools.cache
def _fingerprint() -> str:
    """A hash of what machine code depends on."""
    choices = (ACTIVATIONS, KV_KINDS, POLICIES, SCORES)
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {target()} {choices}".encode())
    for source in sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Where machine code is kept: NUMBA_CACHE_DIR or the platform's cache folder, by a hash of what it depends on."""
    if base := os.environ.get("NUMBA_CACHE_DIR"):
        home = Path(base)
    else:
        import platformdirs

        home = Path(os.environ.get("LAPINFER_HOME") or platformdirs.user_cache_dir("lapinfer", appauthor=False))
    return home / "kernels" / _fingerprint()


def address(name: str) -> int:
    """The machine code address of a kernel, compiled or loaded now if it has to be."""
    with _lock:
        if name not in _compiled:
            _compiled[name] = _compile(name)
        return _compiled[name].address  # type: ignore[attr-defined]


def cached(name: str) -> bool:
    """Whether a kernel's machine code is in the cache folder (as far as file names tell)."""
    return name in _compiled or any(folder().glob(f"**/*.{name}-*.nbi"))


def _compile(name: str):
    """Load a kernel from the cache folder, or compile it; into memory alone where the folder can't be used."""
    global compile_seconds
    began = time.perf_counter()
    place = folder()
    try:
        try:
            place.mkdir(parents=True, exist_ok=True)
            compiled = make(name, place)
        except (OSError, RuntimeError):  # unwritable (which Numba calls having no locator), or the disk is full
            compiled = make(name)
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, ImportError):
            # What such files hold when they were cut off: machine code that a full disk or a crash left behind.
            for damaged in place.glob(f"**/*.{name}-*.nb[ic]"):
                damaged.unlink(missing_ok=True)
            compiled = make(name, place)
    finally:
        compile_seconds += time.perf_counter() - began
    if not compiled.cache_hits:
        compiled_fresh.append(name)
    return compiled


def make(name: str, place: Path | None = None):
    """A kernel compiled with Numba's cache in `place` (set for the moment of compilation only), or without."""
    function, signature = _functions[name]
    previous = config.CACHE_DIR
    if place is not None:
        config.CACHE_DIR = str(place)
    try:
        return cfunc(signature, cache=place is not None, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = previous
