"""Code generation: vectors as Numba types, and what intrinsics are put together from.

A vector always has 512 bits: f32x16, i32x16 or i8x64. LLVM splits it into two AVX2 or four NEON registers, so a kernel
is written once. Memory is addressed by plain int64 addresses, checked before they leave Python.
"""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import models, register_model

from lapinfer.errors import UnsupportedError

intrinsic: Any = extending.intrinsic  # called from Python, one only raises: a type checker takes that for its result

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT, VOID = ir.HalfType(), ir.FloatType(), ir.VoidType()


class Vec(types.Type):
    """An LLVM vector of `lanes` elements as a Numba type."""

    def __init__(self, name: str, element: ir.Type, lanes: int):
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16 = Vec("f32x16", FLOAT, 16)
i32x16 = Vec("i32x16", I32, 16)
i8x64 = Vec("i8x64", I8, 64)


def features(context) -> set[str]:
    """Features of the target, as LLVM names them, e.g. {'avx2', 'avx512vnni'}; 'aarch64' or 'x86' added."""
    triple, _, flags = context.codegen().magic_tuple()
    arch = "aarch64" if triple.startswith(("aarch64", "arm64")) else "x86" if triple.startswith("x86_64") else "other"
    return {f[1:] for f in flags.split(",") if f.startswith("+")} | {arch}


def call(builder, name: str, result, *args):
    """Call the LLVM intrinsic `name`."""
    fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(fn, args)


def call_if(context, feature: str, builder, name: str, result, *args):
    """Call an intrinsic of one kind of processor; LLVM would abort the process if the target lacks the feature."""
    if feature not in features(context):
        raise UnsupportedError(f"{name} needs {feature}, which the target of this code lacks")
    return call(builder, name, result, *args)


def splat(builder, value, lanes: int):
    """A vector with `value` in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def const(vector: ir.VectorType, value):
    """A constant vector with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def pointer(builder, address, kind: ir.Type, offset: int = 0):
    """The int64 `address` + offset as a pointer to `kind`."""
    if offset:
        address = builder.add(address, I64(offset))
    return builder.inttoptr(address, kind.as_pointer())


def load(builder, address, kind: ir.Type, offset: int = 0):
    return builder.load(pointer(builder, address, kind, offset), align=1)


def load_splat(builder, address, element: ir.Type, lanes: int, offset: int = 0):
    """One element from memory in every lane (folds into a broadcasting operand)."""
    return splat(builder, load(builder, address, element, offset), lanes)


def part(builder, vector, start: int, count: int):
    """Lanes start:start + count."""
    return builder.shuffle_vector(
        vector, vector, ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    )


def join(builder, parts):
    """Concatenate equally long vectors (a power of two of them)."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, n), list(range(n)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def multiply_add(builder, a, b, c):
    """a·b + c, rounded once where the target has such an instruction."""
    return call(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)


def named(name: str, typer):
    """An intrinsic that may be an argument of a jitted function.

    Numba makes that function's symbol from the intrinsic's name: under equal names, cached kernels that were compiled
    by different processes could run each other's code.
    """
    typer.__name__ = name
    return intrinsic(typer)
