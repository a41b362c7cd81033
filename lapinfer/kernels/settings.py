"""Numba's settings as kernels were tested with them, whatever NUMBA_… variables or a .numba_config.yaml say.

Without optimization, say, kernels would be slow for ever, since their machine code is kept; with others they cannot be
compiled, or what is dumped mixes with the answer. The settings hold while kernels are declared and compiled: functions
of the program that uses this library keep its own. LAPINFER_ISA chooses instructions, NUMBA_CACHE_DIR a folder.
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lapinfer.kernels import isa

TARGET = isa.apply()  # before the first import of numba
THREADS = "NUMBA_NUM_THREADS"

if "numba" not in sys.modules:
    if (count := os.environ.get(THREADS)) is not None and not (count.isdecimal() and int(count) > 0):
        del os.environ[THREADS]  # Numba cannot be imported with it; no kernel uses its threads
    kept = (*TARGET, THREADS, "NUMBA_CACHE_DIR")
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("NUMBA_") and name not in kept}
    try:  # what it makes now stays as it is: the machine that code is generated for, with its optimization
        import numba  # noqa: F401
    finally:
        os.environ.update(hidden)

from numba.core import config  # noqa: E402

OPTIMIZATION = int(config.OPT)
"""Of the machine that code is generated for: another one where the program has imported Numba before."""


def _tested() -> dict[str, Any]:
    """Of everything that changes what is compiled, or tells of it on stdout."""
    told = {
        name: type(value)()
        for name, value in vars(config).items()
        if name.startswith(("DUMP_", "DEBUG", "TRACE")) and isinstance(value, int)
    }
    prints = {name: "none" for name in ("DEBUG_PRINT_AFTER", "DEBUG_PRINT_BEFORE", "DEBUG_PRINT_WRAP")}
    avx = {"ENABLE_AVX": True} if "NUMBA_ENABLE_AVX" in os.environ else {}
    return {
        **told, **prints, **avx,
        "CPU_NAME": TARGET.get("NUMBA_CPU_NAME"), "CPU_FEATURES": TARGET.get("NUMBA_CPU_FEATURES"),
        "DISABLE_JIT": 0, "OPT": type(config.OPT)(3), "BOUNDSCHECK": None, "DEBUGINFO_DEFAULT": 0,
        "LOOP_VECTORIZE": 1, "SLP_VECTORIZE": 0, "JIT_COVERAGE": 0, "LLVM_PASS_TIMINGS": 0, "CHROME_TRACE": "",
        "ANNOTATE": 0, "HTML": None,
    }  # fmt: skip


def declared(decorator: Callable[[Callable], Any], function: Callable) -> Any:
    """What a decorator of Numba makes of a function, even where NUMBA_DISABLE_JIT is set."""
    before, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        return decorator(function)
    finally:
        config.DISABLE_JIT = before


@contextmanager
def as_tested() -> Iterator[None]:
    """Within the block Numba compiles as it did in our tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that Numba cannot read, with their tracebacks
        config.reload_config()  # else the compiler would do it in the middle
    tested = _tested()
    before = {name: getattr(config, name) for name in tested if hasattr(config, name)}
    for name in before:
        setattr(config, name, tested[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
