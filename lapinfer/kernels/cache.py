"""Compilation of kernels: lazily, once for each version of the sources, to a cache folder of their own.

Numba's own cache looks only at the file of the function itself, so a changed helper would leave stale machine code; and
it unpickles whatever it finds. The name of our folder is a hash of all sources of kernels and formats, the versions of
Python, Numba and llvmlite, and the target; what is in it is checked first (store.py).
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite

from lapinfer.kernels.settings import OPTIMIZATION, as_tested, declared  # before the first import of numba

# isort: split
import numba
from numba import int64, njit, void
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

import lapinfer.quant
from lapinfer.kernels.operands import (
    ACTIVATIONS,
    FIRST,
    KV_KINDS,
    OPERANDS,
    POLICIES,
    SCORES,
    STEP,
)
from lapinfer.kernels.records import RecordType
from lapinfer.kernels.store import Store, open_store

SIGNATURE = void(int64, int64, int64, int64)
"""What machine code of every kernel takes: four int64."""
_njit = njit(error_model="numpy", nogil=True)

_functions: dict[str, tuple[Callable, Any]] = {}
_compiled: dict[str, CFunc] = {}
_stored: dict[str, bytes] = {}
_lock = threading.Lock()
compile_seconds = 0.0
"""Time spent compiling or loading machine code in this process."""
compiled_fresh: list[str] = []
"""Kernels that no cache held."""


def jit(function: Callable) -> Any:
    """For functions that kernels call: never raises (division by zero gives inf), inlined by LLVM."""
    return declared(_njit, function)


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
    with as_tested():
        return " ".join(cpu_target.target_context.codegen().magic_tuple())


def sources() -> list[Path]:
    """Files whose functions or numbers become machine code: kernels, and what formats say of their layouts.

    What operands.py takes from elsewhere are names whose order gives their numbers; `version` has these by value.
    """
    packages = (Path(__file__).parent, Path(lapinfer.quant.__file__).parent)
    return [source for package in packages for source in sorted(package.rglob("*.py"))]


@functools.cache
def version() -> str:
    """A hash of what machine code depends on: 16 hexadecimal digits."""
    choices = (ACTIVATIONS, KV_KINDS, POLICIES, SCORES)
    versions = f"{sys.implementation.cache_tag} {numba.__version__} {llvmlite.__version__} {OPTIMIZATION}"
    digest = hashlib.sha256(f"{versions} {target()} {choices}".encode())
    for source in sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def store() -> Store:
    """Where machine code of these sources is kept."""
    return open_store(version())


def address(name: str) -> int:
    """The machine code address of a kernel, compiled or loaded now if it has to be."""
    with _lock:
        if name not in _compiled:
            _compiled[name] = _load(name)
        return _compiled[name].address


def cached(name: str) -> bool:
    """Whether a kernel need not be compiled."""
    with _lock:
        return name in _compiled or _read(name) is not None


def _kind(name: str) -> str:
    """What a kernel's machine code takes."""
    return str(_functions[name][1])


def _read(name: str) -> bytes | None:
    """A kernel's machine code as it was stored; it is needed twice, but read once."""
    if name not in _stored and (data := store().read(name, _kind(name))) is not None:
        _stored[name] = data
    return _stored.get(name)


def _load(name: str) -> CFunc:
    """Load a kernel from the store, or compile it for the store, or into memory alone if there is none."""
    global compile_seconds
    began = time.perf_counter()
    try:
        compiled = make(name, stored=True)
    finally:
        compile_seconds += time.perf_counter() - began
    if not compiled.cache_hits:
        compiled_fresh.append(name)
    return compiled


class _Stored(NullCache):
    """What Numba asks for a function's machine code before it compiles, and gives it after that."""

    def __init__(self, name: str):
        self.name = name

    def load_overload(self, sig, target_context) -> Any:
        target_context.refresh()
        if (data := _read(self.name)) is None:
            return None
        del _stored[self.name]
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(data))
        except Exception:  # not damaged, but of a Numba that somebody has changed
            return None

    def save_overload(self, sig, cres):
        if not cres.library.has_dynamic_globals:  # addresses of this process
            store().write(self.name, _kind(self.name), dumps(cres._reduce()))


def make(name: str, stored: bool = False) -> CFunc:
    """A kernel compiled now; stored: or loaded, and else stored."""
    function, signature = _functions[name]
    with as_tested():
        compiled = CFunc(function, normalize_signature(signature), locals={}, options={"error_model": "numpy"})
        if stored:
            compiled._cache = _Stored(name)
        compiled.compile()
    return compiled
