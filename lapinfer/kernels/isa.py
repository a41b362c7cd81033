"""LAPINFER_ISA: compile for fewer instructions than this processor has, to test or to compare them.

Numba reads its target from the environment when it is first imported, so `apply` comes before that. It sets name AND
features: Numba's CPU name alone would keep the host's features. Names are LLVM's levels of x86-64, which promise
just the features that are checked here, unlike the names of real processors.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

import llvmlite.binding as llvm

from lapinfer.errors import InputError, UnsupportedError

VARIABLE = "LAPINFER_ISA"


@dataclass(frozen=True, slots=True)
class Isa:
    """LLVM's name of a processor, and the features that code may use."""

    arch: str
    cpu: str
    features: tuple[str, ...]


_V1 = ("64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2")
_V3 = (
    *_V1, "cx16", "sahf", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2", "crc32",
    "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave",
)  # fmt: skip
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_ARM = ("fp-armv8", "neon")

ISAS: dict[str, Isa] = {
    "generic": Isa("x86_64", "x86-64", _V1),
    "avx2": Isa("x86_64", "x86-64-v3", _V3),
    "avxvnni": Isa("x86_64", "x86-64-v3", (*_V3, "avxvnni")),
    "avx512": Isa("x86_64", "x86-64-v4", _V4),
    "avx512vnni": Isa("x86_64", "x86-64-v4", (*_V4, "avx512vnni")),
    "neon": Isa("aarch64", "generic", _ARM),
    "dotprod": Isa("aarch64", "generic", (*_ARM, "dotprod")),
}
"""No other feature is used. `avx2`: Haswell or Zen, `avx512`: Skylake-X, `dotprod`: Apple M1 or Cortex-A76."""


def architecture() -> str:
    arch = llvm.get_process_triple().split("-")[0]
    return "aarch64" if arch == "arm64" else arch


def reported_features() -> set[str]:
    """Features of this processor that LLVM finds; none on systems where it can't tell."""
    try:
        return {name for name, there in llvm.get_host_cpu_features().items() if there}
    except RuntimeError:
        return set()


def host_features() -> set[str]:
    """Features of this processor, as LLVM names them."""
    have = reported_features()
    if architecture() == "aarch64":
        have |= set(_ARM)  # part of the architecture
        if _arm_has_dotprod():
            have.add("dotprod")
    return have


def _arm_has_dotprod() -> bool:
    """The system's word, for where LLVM does not look."""
    if sys.platform == "darwin":
        return True  # every Apple M has it
    if sys.platform == "win32":
        pf_arm_v82_dp_instructions_available = 43
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(pf_arm_v82_dp_instructions_available))
    at_hwcap, asimddp = 16, 1 << 20
    try:
        return bool(ctypes.CDLL(None).getauxval(at_hwcap) & asimddp)
    except (OSError, AttributeError):
        return False


def available() -> list[str]:
    """Names that this processor can run."""
    have = host_features()
    return [name for name, isa in ISAS.items() if isa.arch == architecture() and have.issuperset(isa.features)]


def environment(isa: Isa, cpu: str | None = None) -> dict[str, str]:
    """What Numba reads."""
    return {"NUMBA_CPU_NAME": cpu or isa.cpu, "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in isa.features)}


def apply() -> dict[str, str]:
    """Set Numba's target as LAPINFER_ISA says; what was set: nothing for the processor that this is.

    InputError for a name that is unknown or comes too late, UnsupportedError for instructions that it lacks.
    """
    name = os.environ.get(VARIABLE, "native") or "native"
    if name == "native":
        # LLVM may know the processor but not its features: then kernels would not use the dot product.
        if "dotprod" not in host_features() - reported_features():
            return {}
        wanted = environment(ISAS["dotprod"], llvm.get_host_cpu_name())
        _set(wanted)
        return wanted
    if name not in ISAS:
        raise InputError(f"{VARIABLE}={name} is not known, expected native, {', '.join(ISAS)}")
    if name not in available():
        isa = ISAS[name]
        lacking = sorted(set(isa.features) - host_features()) if isa.arch == architecture() else [isa.arch]
        raise UnsupportedError(
            f"{VARIABLE}={name}: this processor lacks {', '.join(lacking)}; it can run native, {', '.join(available())}"
        )
    wanted = environment(ISAS[name])
    _set(wanted)
    return wanted


def _set(wanted: dict[str, str]) -> None:
    if all(os.environ.get(key) == value for key, value in wanted.items()):
        return
    if "numba" in sys.modules:
        raise InputError(f"{VARIABLE} takes effect before numba is imported: import lapinfer's kernels first")
    os.environ.update(wanted)
