"""SIMD intrinsics: kernels stay plain Python that reads like them. Vectors: codegen.py.

Every reduction has a fixed order, so results do not depend on the processor's vector width.
"""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.extending import lower_builtin, type_callable

from lapinfer.kernels.codegen import (
    FLOAT,
    I8,
    I32,
    I64,
    VOID,
    Vec,
    call,
    const,
    f32x16,
    i32x16,
    intrinsic,
    load,
    multiply_add,
    named,
    part,
    pointer,
    splat,
)

# ---- memory ----


def _memory(kind: types.Type):
    """Load and store intrinsics' code for one Numba type stored as itself."""

    def loader(typingctx, address):
        return kind(types.int64), lambda context, b, sig, a: load(b, a[0], context.get_data_type(kind))

    def storer(typingctx, address, value):
        def generate(context, b, sig, args):
            value = context.cast(b, args[1], sig.args[1], kind)
            b.store(value, pointer(b, args[0], context.get_data_type(kind)), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, kind), generate

    return loader, storer


_load_f32x16, _store_f32x16 = _memory(f32x16)
_load_f32, _store_f32 = _memory(types.float32)
_load_i32, _store_i32 = _memory(types.int32)
_load_i64, _store_i64 = _memory(types.int64)
load_f32x16, store_f32x16 = named("load_f32x16", _load_f32x16), intrinsic(_store_f32x16)
load_f32, store_f32 = intrinsic(_load_f32), intrinsic(_store_f32)
load_i32, store_i32 = intrinsic(_load_i32), intrinsic(_store_i32)
load_i64, store_i64 = intrinsic(_load_i64), intrinsic(_store_i64)


@intrinsic
def store_f64(typingctx, address, value):
    def generate(context, b, sig, args):
        b.store(args[1], pointer(b, args[0], ir.DoubleType()), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), generate


@intrinsic
def load_f64(typingctx, address):
    return types.float64(types.int64), lambda context, b, sig, a: load(b, a[0], ir.DoubleType())


@intrinsic
def load_i8x16(typingctx, address):
    """16 signed bytes as float32."""
    return f32x16(types.int64), lambda context, b, sig, a: b.sitofp(load(b, a[0], ir.VectorType(I8, 16)), f32x16.llvm)


@intrinsic
def load_u8(typingctx, address):
    return types.int64(types.int64), lambda context, b, sig, a: b.zext(load(b, a[0], I8), I64)


@intrinsic
def load_i8(typingctx, address):
    return types.int64(types.int64), lambda context, b, sig, a: b.sext(load(b, a[0], I8), I64)


@intrinsic
def store_i8x16(typingctx, address, value):
    """16 whole numbers of −128 … 127 as bytes."""

    def generate(context, b, sig, args):
        byte = b.trunc(args[1], ir.VectorType(I8, 16))
        b.store(byte, pointer(b, args[0], byte.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, i32x16), generate


@intrinsic
def store_i8(typingctx, address, value):
    """One float, a whole number of −127 … 127, as a byte."""

    def generate(context, b, sig, args):
        number = call(b, "llvm.fptosi.sat.i32.f32", I32, args[1])
        b.store(b.trunc(number, I8), pointer(b, args[0], I8), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


def _ask(b, address):
    call(b, "llvm.prefetch.p0", VOID, pointer(b, address, I8), I32(0), I32(3), I32(1))


@intrinsic
def ask(typingctx, address):
    """Ask for a cache line that will be read soon, of a piece too short for the processor to see a stream in it."""

    def generate(context, b, sig, args):
        _ask(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def prefetch(typingctx, address):
    """Ask for a cache line of a stream, on processors where that was measured to help (bench/LOG.md); never faults.

    Zen 5 and Emerald Rapids (by LLVM's names; its relatives are taken to be alike). Others find streams themselves: on
    Zen 4, asking as well costs up to a third of the speed.
    """

    def generate(context, b, sig, args):
        name = context.codegen().magic_tuple()[1]
        if name == "znver5" or name.endswith("rapids"):
            _ask(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# ---- arithmetic ----


@intrinsic
def splat_f32(typingctx, value):
    return f32x16(types.float32), lambda context, b, sig, a: splat(b, a[0], 16)


@intrinsic
def fma(typingctx, a, b, c):
    """a·b + c of f32x16."""
    return f32x16(f32x16, f32x16, f32x16), lambda context, b, sig, a: multiply_add(b, *a)


@intrinsic
def lane(typingctx, vector, index):
    return types.float32(f32x16, types.int64), lambda context, b, sig, a: b.extract_element(a[0], a[1])


@intrinsic
def iota(typingctx):
    """0.0, 1.0, … 15.0."""
    return f32x16(), lambda context, b, sig, a: ir.Constant(f32x16.llvm, [float(i) for i in range(16)])


def _unary(name: str):
    def typer(typingctx, a):
        return f32x16(f32x16), lambda context, b, sig, args: call(b, f"llvm.{name}.v16f32", f32x16.llvm, args[0])

    return typer


def _binary(name: str):
    def typer(typingctx, a, c):
        return f32x16(f32x16, f32x16), lambda context, b, sig, args: call(b, f"llvm.{name}.v16f32", f32x16.llvm, *args)

    return typer


absolute, round_even, square_root = intrinsic(_unary("fabs")), intrinsic(_unary("rint")), intrinsic(_unary("sqrt"))
maximum, minimum = intrinsic(_binary("maximum")), intrinsic(_binary("minimum"))  # NaN stays NaN
copy_sign = intrinsic(_binary("copysign"))


@intrinsic
def where_less(typingctx, a, c, yes, no):
    """yes where a < c, else no; lane by lane."""
    return f32x16(f32x16, f32x16, f32x16, f32x16), lambda context, b, sig, args: b.select(
        b.fcmp_ordered("<", args[0], args[1]), args[2], args[3]
    )


@intrinsic
def where_bit(typingctx, bits, yes, no):
    """yes where bit i of a whole number is 1, else no; lane i by lane i."""

    def generate(context, b, sig, args):
        lanes = b.bitcast(b.trunc(args[0], ir.IntType(16)), ir.VectorType(ir.IntType(1), 16))
        return b.select(lanes, args[1], args[2])

    return f32x16(types.int64, f32x16, f32x16), generate


@intrinsic
def power_of_two(typingctx, exponent):
    """2^n for whole n of −126 … 127, by building the bits."""

    def generate(context, b, sig, args):
        n = call(b, "llvm.lrint.v16i32.v16f32", i32x16.llvm, args[0])
        return b.bitcast(b.shl(b.add(n, const(i32x16.llvm, 127)), const(i32x16.llvm, 23)), f32x16.llvm)

    return f32x16(f32x16), generate


def _reduce(combine):
    """Fold halves onto each other: 16, 8, 4, 2, 1 lanes, the same order on every processor."""

    def typer(typingctx, vector):
        def generate(context, b, sig, args):
            v = args[0]
            while v.type.count > 1:
                n = v.type.count // 2
                v = combine(b, part(b, v, 0, n), part(b, v, n, n))
            return b.extract_element(v, I32(0))

        return types.float32(f32x16), generate

    return typer


def _combine_maximum(b, x, y):
    return call(b, f"llvm.maximum.v{x.type.count}f32", x.type, x, y)


def _combine_larger(b, x, y):
    return b.select(b.fcmp_ordered("<", x, y), y, x)


def _combine_sum(b, x, y):
    return b.fadd(x, y)


reduce_max, reduce_sum = intrinsic(_reduce(_combine_maximum)), intrinsic(_reduce(_combine_sum))
reduce_larger = intrinsic(_reduce(_combine_larger))  # one instruction a step on x86, but a NaN may get lost


def _operator(op, build: str):
    @type_callable(op)
    def _typer(context):
        return lambda a, b: a if isinstance(a, Vec) and a == b else None

    @lower_builtin(op, Vec, Vec)
    def _lower(context, b, sig, args):
        return getattr(b, build)(*args)


for _op, _build in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _operator(_op, _build)


@intrinsic
def to_whole(typingctx, value):
    """f32x16 rounded to the nearest whole numbers (even on ties) -> i32x16; NaN gives any."""
    return i32x16(f32x16), lambda context, b, sig, a: call(b, "llvm.lrint.v16i32.v16f32", i32x16.llvm, a[0])


@intrinsic
def to_float(typingctx, value):
    return f32x16(i32x16), lambda context, b, sig, a: b.sitofp(a[0], f32x16.llvm)


@intrinsic
def plus(typingctx, x, y):
    """i32x16 + i32x16."""
    return i32x16(i32x16, i32x16), lambda context, b, sig, a: b.add(a[0], a[1])


@intrinsic
def minus_255_times(typingctx, x, y):
    """x − 255·y of i32x16."""
    return i32x16(i32x16, i32x16), lambda context, b, sig, a: b.sub(
        b.add(a[0], a[1]), b.shl(a[1], const(i32x16.llvm, 8))
    )


@intrinsic
def reduce_sum_whole(typingctx, value):
    """The sum of an i32x16."""
    return types.int32(i32x16), lambda context, b, sig, a: call(b, "llvm.vector.reduce.add.v16i32", I32, a[0])


@intrinsic
def largest_magnitude(typingctx, x, y):
    """max |·| over two f32x16, NaN if any is: without their signs, floats are ordered as their bits are."""

    def generate(context, b, sig, args):
        mask = const(i32x16.llvm, 0x7FFFFFFF)
        p, q = (b.and_(b.bitcast(v, i32x16.llvm), mask) for v in args)
        larger = call(b, "llvm.smax.v16i32", i32x16.llvm, p, q)
        return b.bitcast(call(b, "llvm.vector.reduce.smax.v16i32", I32, larger), FLOAT)

    return types.float32(f32x16, f32x16), generate
