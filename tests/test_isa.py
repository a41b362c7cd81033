"""LAPINFER_ISA: kernels are right on every instruction set that this processor can run, and use its instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lapinfer.kernels import isa

HERE = Path(__file__).parent
SUBSET = "(stores_and_adds and (q4 or q5 or q8) and not q4_1) or half or halves or exp or reductions or f16-gqa"
"""The kernel tests that see most of what differs between processors."""

ASSEMBLY = """
import sys
from lapinfer.kernels import cache, library
for name in sys.argv[1:]:
    print(cache.make(name)._library.get_asm_str())
"""

CROSS_ASSEMBLY = """
import sys
from lapinfer.kernels import cache, library
import llvmlite.binding as llvm
from numba import cfunc
from numba.core import codegen

triple, cpu, features, *names = sys.argv[1:]
cfunc(cache.SIGNATURE)(lambda op, step, chunk, thread: None)  # Numba's own runtime is compiled for this processor
made = []
codegen.CPUCodegen.magic_tuple = lambda self: (triple, cpu, features)
codegen.JITCodeLibrary._finalize_specific = lambda self: made.append(self)
codegen.CPUCodegen._add_module = codegen.JITCPUCodegen._add_module = lambda self, module: None
codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: 0
codegen.JITCPUCodegen.set_env = lambda self, name, env: None
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
for name in names:
    cache.make(name)
    text = str(made[-1]._final_module).splitlines()
    module = llvm.parse_assembly("\\n".join(line for line in text if not line.startswith("target ")))
    module.triple, module.data_layout = triple, str(machine.target_data)
    print(machine.emit_assembly(module))
"""

MISSING = """
from lapinfer.kernels import cache, codegen, dots
from numba import cfunc
from numba.core import types
from numba.extending import intrinsic
@intrinsic
def forbidden(typingctx, address):
    def generate(context, b, sig, args):
        codes = codegen.load(b, args[0], codegen.i8x64.llvm)
        dots._byte_pairs(context, b, codes, codes)
        return context.get_dummy_value()
    return types.void(types.int64), generate
def wrong(op, step, chunk, thread):
    forbidden(op)
try:
    cfunc(cache.SIGNATURE)(wrong)
except Exception as error:
    print(type(error).__name__, error)
"""


def run(name: str, *arguments: str) -> str:
    """What Python prints that runs with LAPINFER_ISA=name."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment | {"LAPINFER_ISA": name}, cwd=HERE.parent, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def assembly(name: str, *kernels: str) -> str:
    return run(name, "-c", ASSEMBLY, *kernels)


def require(name: str) -> None:
    if name not in isa.available():
        pytest.skip(f"this processor has no {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in isa.ISAS if name != "avx512vnni"])
def test_kernels_are_right(name: str) -> None:
    require(name)
    run(name, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "test_kernels.py"), "-k", SUBSET)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [
        ("avx512vnni", ("vpdpbusd", "zmm", "vcvtph2ps"), ("vpmaddubsw",)),
        ("avx512", ("vpmaddubsw", "zmm", "vcvtph2ps"), ("vpdpbusd",)),
        ("avxvnni", ("vpdpbusd", "ymm", "vcvtph2ps"), ("zmm", "vpmaddubsw")),
        ("avx2", ("vpmaddubsw", "ymm", "vcvtph2ps", "vfmadd"), ("zmm", "vpdpbusd")),
        ("generic", ("pmaddwd", "xmm"), ("ymm", "zmm", "vcvtph2ps", "vfmadd", "pmaddubsw")),
    ],
)
def test_instructions(name: str, used: tuple[str, ...], unused: tuple[str, ...]) -> None:
    require(name)
    text = assembly(name, "matmul_q4", "matmul_q8", "attention_f16")
    assert [word for word in used if word not in text] == []
    assert [word for word in unused if word in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["apple-m1", "neoverse-n1", "cortex-a76"])
def test_arm_code_has_the_dot_product(cpu: str) -> None:
    features = ",".join(f"+{feature}" for feature in isa.ISAS["dotprod"].features)
    text = run("native", "-c", CROSS_ASSEMBLY, "aarch64-unknown-linux-gnu", cpu, features, "matmul_q4", "matmul_q8")
    assert text.count("\tsdot\t") >= 2 * 32  # 8 lines of 64 bytes in registers of 16, for both formats
    assert "fmla" in text
    assert "fcvtl" in text


def test_an_instruction_that_the_target_lacks_is_an_error() -> None:
    require("generic")
    assert "needs avx2, which the target of this code lacks" in run("generic", "-c", MISSING)


def apply_in_a_new_process(**environment: str) -> str:
    code = (
        "from lapinfer.errors import LapinferError\ntry:\n    import lapinfer.kernels.cache as c; print(c.target())\n"
    )
    code += "except LapinferError as error:\n    print(type(error).__name__, error)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_CPU", "LAPINFER_ISA"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, text=True, capture_output=True, check=True
    )
    return done.stdout


def test_names_are_checked() -> None:
    other = "dotprod" if isa.architecture() == "x86_64" else "avx2"
    assert apply_in_a_new_process(LAPINFER_ISA="sse9").startswith("InputError LAPINFER_ISA=sse9 is not known, expected")
    assert apply_in_a_new_process(LAPINFER_ISA=other).startswith(
        f"UnsupportedError LAPINFER_ISA={other}: this processor"
    )
    assert apply_in_a_new_process() == apply_in_a_new_process(LAPINFER_ISA="native")


def test_a_target_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import lapinfer.kernels.cache

    assert lapinfer.kernels.cache
    require("generic")
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.setenv("LAPINFER_ISA", "generic")
    with pytest.raises(isa.InputError, match="before numba is imported"):
        isa.apply()
    assert "NUMBA_CPU_NAME" not in os.environ


def test_an_older_processor_is_refused_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: set(isa.ISAS["generic"].features))
    monkeypatch.setattr(isa, "architecture", lambda: "x86_64")
    assert isa.available() == ["generic"]
    monkeypatch.setenv("LAPINFER_ISA", "avx2")
    with pytest.raises(isa.UnsupportedError, match=r"lacks avx, avx2, .*; it can run native, generic"):
        isa.apply()


@pytest.mark.parametrize("system", ["darwin", "win32", "linux"])
@pytest.mark.parametrize("has", [True, False])
def test_arm_hosts_whose_features_llvm_does_not_know_use_the_dot_product(
    system: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system tells: Windows by IsProcessorFeaturePresent(43), Linux by a bit of AT_HWCAP; Apple has it."""
    kernel32 = SimpleNamespace(IsProcessorFeaturePresent=lambda number: int(has and number == 43))
    monkeypatch.setattr(isa.ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    libc = SimpleNamespace(getauxval=lambda kind: has << 20 if kind == 16 else 0)
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda name: libc)
    applied: dict[str, str] = {}
    monkeypatch.delenv("LAPINFER_ISA", raising=False)
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    monkeypatch.setattr(isa, "architecture", lambda: "aarch64")
    monkeypatch.setattr(isa, "reported_features", set)
    monkeypatch.setattr(isa.sys, "platform", system)
    monkeypatch.setattr(isa, "_set", applied.update)
    isa.apply()
    assert ("+dotprod" in applied.get("NUMBA_CPU_FEATURES", "")) == (has or system == "darwin")


def test_intrinsics_given_to_kernels_have_names_of_their_own() -> None:
    """Numba makes symbols of their names; kernels from the cache with equal symbols ran each other's code."""
    from lapinfer.kernels import attention, products, rows, simd

    constants = (*products.PACKED, *products.COLUMNS, *rows.ROWS, *attention.KV)
    given = [member for W in constants for member in W.members.values() if not isinstance(member, int)]
    given += [value for key, value in vars(simd).items() if key.startswith("tile_of_")]
    stamped = (*constants, *products.ELEMENTS)
    assert len({(W.kind, W.format, W.activations) for W in stamped}) == len(stamped)
    assert len({intrinsic._name for intrinsic in given}) == len(given) >= 25
