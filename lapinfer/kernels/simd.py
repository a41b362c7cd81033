"""SIMD vectors as Numba types: kernels stay plain Python that reads like intrinsics.

A vector always has 512 bits: f32x16, i32x16 or i8x64. LLVM splits it into two AVX2 or four NEON registers,
so a kernel is written once. Memory is addressed by plain int64 addresses, checked before they leave Python.
Only the byte dot product differs between processors: `dot_unsigned` and `dot_signed` choose the instruction
from the features of the target that code is generated for (an instruction it lacks would abort the process).

Every reduction has a fixed order, so results do not depend on the processor's vector width.
"""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import lower_builtin, models, register_model, type_callable

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


# ---- code generation helpers, used by intrinsics here and in the format files ----


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


def at(builder, address, kind: ir.Type, offset: int = 0):
    """The int64 `address` + offset as a pointer to `kind`."""
    if offset:
        address = builder.add(address, I64(offset))
    return builder.inttoptr(address, kind.as_pointer())


def load(builder, address, kind: ir.Type, offset: int = 0):
    return builder.load(at(builder, address, kind, offset), align=1)


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


def half_to_float(context, builder, bits):
    """IEEE half (as <n x i16>) to float. By integer arithmetic where the target has no instruction."""
    n = bits.type.count
    vf, vi = ir.VectorType(FLOAT, n), ir.VectorType(I32, n)
    if features(context) & {"f16c", "avx512f", "aarch64"}:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(HALF, n)), vf)
    wide = builder.zext(bits, vi)
    sign = builder.shl(builder.and_(wide, const(vi, 0x8000)), const(vi, 16))
    magnitude = builder.shl(builder.and_(wide, const(vi, 0x7FFF)), const(vi, 13))
    # Scaling by 2^112 moves the exponent's bias from 15 to 127 and normalises subnormals exactly.
    scaled = builder.fmul(builder.bitcast(magnitude, vf), const(vf, 2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, const(vi, 0x7C00 << 13))
    infinite = builder.or_(magnitude, const(vi, 0x7F800000))
    return builder.bitcast(builder.or_(sign, builder.select(special, infinite, builder.bitcast(scaled, vi))), vf)


def bf16_to_float(builder, bits):
    """bfloat16 (as <n x i16>) to float: it is a float's upper half."""
    wide = ir.VectorType(I32, bits.type.count)
    return builder.bitcast(
        builder.shl(builder.zext(bits, wide), const(wide, 16)), ir.VectorType(FLOAT, bits.type.count)
    )


def float_to_half(context, builder, value):
    """Float to IEEE half (as <n x i16>), round to nearest even."""
    n = value.type.count
    vf, vi, vh = value.type, ir.VectorType(I32, n), ir.VectorType(I16, n)
    if features(context) & {"f16c", "avx512f", "aarch64"}:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(HALF, n)), vh)
    bits = builder.bitcast(value, vi)
    sign = builder.and_(builder.lshr(bits, const(vi, 16)), const(vi, 0x8000))
    magnitude = builder.and_(bits, const(vi, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, const(vi, 13)), const(vi, 1))
    rounded = builder.add(builder.add(magnitude, const(vi, 0xFFF - (112 << 23))), odd)
    normal = builder.lshr(rounded, const(vi, 13))
    # Below 2^-14 adding 0.5 leaves the rounded half's mantissa in the lowest bits of the float.
    shifted = builder.fadd(builder.bitcast(magnitude, vf), const(vf, 0.5))
    small = builder.sub(builder.bitcast(shifted, vi), const(vi, 0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", magnitude, const(vi, 113 << 23)), small, normal)
    half = builder.select(builder.icmp_unsigned(">=", magnitude, const(vi, 0x477FF000)), const(vi, 0x7C00), half)
    half = builder.select(builder.icmp_unsigned(">", magnitude, const(vi, 0x7F800000)), const(vi, 0x7E00), half)
    return builder.trunc(builder.or_(sign, half), vh)


def _pairs(context, feature: str, builder, kind: str, width: int, a, b, result_element, result_per: int):
    """Apply an x86 multiply-add-pairs intrinsic of `width` lanes over longer vectors."""
    n = a.type.count
    result = ir.VectorType(result_element, width // result_per)
    return join(
        builder,
        [
            call_if(context, feature, builder, kind, result, part(builder, a, i, width), part(builder, b, i, width))
            for i in range(0, n, width)
        ],
    )


def _byte_pairs(context, builder, unsigned, signed):
    """pmaddubsw: neighbouring products of u8 and s8 added to i16 (saturating: callers stay below)."""
    if "avx512bw" in features(context):
        return _pairs(context, "avx512bw", builder, "llvm.x86.avx512.pmaddubs.w.512", 64, unsigned, signed, I16, 2)
    return _pairs(context, "avx2", builder, "llvm.x86.avx2.pmadd.ub.sw", 32, unsigned, signed, I16, 2)


def _word_pairs(context, builder, a, b):
    """pmaddwd: neighbouring products of i16 added to i32."""
    have = features(context)
    if "avx512bw" in have:
        return _pairs(context, "avx512bw", builder, "llvm.x86.avx512.pmaddw.d.512", 32, a, b, I32, 2)
    if "avx2" in have:
        return _pairs(context, "avx2", builder, "llvm.x86.avx2.pmadd.wd", 16, a, b, I32, 2)
    return _pairs(context, "sse2", builder, "llvm.x86.sse2.pmadd.wd", 8, a, b, I32, 2)


def _vnni(context, builder, acc, unsigned, signed):
    """vpdpbusd on 512 bits or, with AVX-VNNI, on two halves."""
    if "avx512vnni" in features(context):
        return call_if(context, "avx512vnni", builder, "llvm.x86.avx512.vpdpbusd.512", acc.type, acc, unsigned, signed)
    halves = []
    for i in (0, 1):
        a, u, s = part(builder, acc, 8 * i, 8), part(builder, unsigned, 32 * i, 32), part(builder, signed, 32 * i, 32)
        halves.append(call_if(context, "avxvnni", builder, "llvm.x86.avx512.vpdpbusd.256", a.type, a, u, s))
    return join(builder, halves)


def _has_vnni(context) -> bool:
    have = features(context)
    return "avx512vnni" in have or "avxvnni" in have


def _signed_generic(context, builder, acc, a, b):
    """The dot product of signed bytes by 16-bit (x86) or 32-bit arithmetic."""
    element, shift = (I16, 8) if "x86" in features(context) else (I32, 24)
    lanes = ir.VectorType(element, 512 // element.width)

    def byte(vector, index):
        wide = builder.bitcast(vector, lanes)
        if shift - 8 * index:
            wide = builder.shl(wide, const(lanes, shift - 8 * index))
        return builder.ashr(wide, const(lanes, shift))

    for i in range(element.width // 8):
        if element is I16:
            acc = builder.add(acc, _word_pairs(context, builder, byte(a, i), byte(b, i)))
        else:
            acc = builder.add(acc, builder.mul(byte(a, i), byte(b, i)))
    return acc


def _neon(context, builder, acc, a, b):
    quarters = []
    for i in range(4):
        q, x, y = part(builder, acc, 4 * i, 4), part(builder, a, 16 * i, 16), part(builder, b, 16 * i, 16)
        quarters.append(call_if(context, "dotprod", builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", q.type, q, x, y))
    return join(builder, quarters)


def dot_small(context, builder, small, signed):
    """Σ over eight pairs of i8x64 of their 4-byte dot products; `small` holds 0 … 15 -> i32x16."""
    acc = const(i32x16.llvm, 0)
    have = features(context)
    if not _has_vnni(context) and "avx2" in have:
        # 8 · 2 · 15 · 127 = 30,480 fits 16 bits: widen once a group.
        total = _byte_pairs(context, builder, small[0], signed[0])
        for w, x in zip(small[1:], signed[1:], strict=True):
            total = builder.add(total, _byte_pairs(context, builder, w, x))
        return _word_pairs(context, builder, total, const(ir.VectorType(I16, 32), 1))
    for w, x in zip(small, signed, strict=True):
        if _has_vnni(context):
            acc = _vnni(context, builder, acc, w, x)
        elif "dotprod" in have:
            acc = _neon(context, builder, acc, w, x)
        else:
            acc = _signed_generic(context, builder, acc, w, x)
    return acc


def dot_signed(context, builder, weights, signed, bias):
    """Σ over pairs of i8x64 of the 4-byte dot products of signed bytes (both −127 … 127) -> i32x16.

    `bias` is −128 · Σ signed, for instructions that want one operand unsigned and so get w + 128.
    """
    have = features(context)
    acc = bias if _has_vnni(context) else const(i32x16.llvm, 0)
    for w, x in zip(weights, signed, strict=True):
        if _has_vnni(context):
            acc = _vnni(context, builder, acc, builder.xor(w, const(i8x64.llvm, 0x80)), x)
        elif "avx2" in have:
            negative = builder.icmp_signed("<", w, const(i8x64.llvm, 0))
            magnitude = builder.select(negative, builder.neg(w), w)
            x = builder.select(negative, builder.neg(x), x)  # 2 · 127 · 127 fits 16 bits
            pairs = _byte_pairs(context, builder, magnitude, x)
            acc = builder.add(acc, _word_pairs(context, builder, pairs, const(ir.VectorType(I16, 32), 1)))
        elif "dotprod" in have:
            acc = _neon(context, builder, acc, w, x)
        else:
            acc = _signed_generic(context, builder, acc, w, x)
    return acc


def fp4_codes(context, builder, nibbles):
    """Twice the values of 4-bit floats (quant.MXFP4_VALUES): i8x64 of 0 … 15 -> i8x64 of −12 … 12."""
    have = features(context)
    table = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    if have & {"avx512bw", "avx2", "aarch64"}:
        feature, width, name = (
            ("avx512bw", 64, "llvm.x86.avx512.pshuf.b.512") if "avx512bw" in have
            else ("avx2", 32, "llvm.x86.avx2.pshuf.b") if "avx2" in have
            else ("aarch64", 16, "llvm.aarch64.neon.tbl1.v16i8")
        )  # fmt: skip
        kind = ir.VectorType(I8, width)
        constant = ir.Constant(kind, table * (width // 16))
        parts = (part(builder, nibbles, i, width) for i in range(0, 64, width))
        return join(builder, [call_if(context, feature, builder, name, kind, constant, p) for p in parts])
    vector = i8x64.llvm
    magnitude = builder.and_(nibbles, const(vector, 7))

    def above(start: int):
        return call(builder, "llvm.usub.sat.v64i8", vector, magnitude, const(vector, start))

    value = builder.add(builder.add(magnitude, above(4)), builder.add(above(6), above(6)))
    negative = builder.icmp_unsigned(">", nibbles, const(vector, 7))
    return builder.select(negative, builder.neg(value), value)


def named(name: str, typer):
    """An intrinsic that may be an argument of a jitted function.

    Numba makes that function's symbol from the intrinsic's name: under equal names, cached kernels that were compiled
    by different processes could run each other's code.
    """
    typer.__name__ = name
    return intrinsic(typer)


# ---- memory ----


def _memory(kind: types.Type):
    """Load and store intrinsics' code for one Numba type stored as itself."""

    def loader(typingctx, address):
        return kind(types.int64), lambda context, b, sig, a: load(b, a[0], context.get_data_type(kind))

    def storer(typingctx, address, value):
        def generate(context, b, sig, args):
            value = context.cast(b, args[1], sig.args[1], kind)
            b.store(value, at(b, args[0], context.get_data_type(kind)), align=1)
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
def load_f16x16(typingctx, address):
    """16 halves as float32."""
    return f32x16(types.int64), lambda context, b, sig, a: half_to_float(
        context, b, load(b, a[0], ir.VectorType(I16, 16))
    )


@intrinsic
def load_f16(typingctx, address):
    """One half as float32."""

    def generate(context, b, sig, args):
        one = load(b, args[0], ir.VectorType(I16, 1))
        return b.extract_element(half_to_float(context, b, one), I32(0))

    return types.float32(types.int64), generate


@intrinsic
def load_bf16(typingctx, address):
    """One bfloat16 as float32."""

    def generate(context, b, sig, args):
        return b.extract_element(bf16_to_float(b, load(b, args[0], ir.VectorType(I16, 1))), I32(0))

    return types.float32(types.int64), generate


@intrinsic
def store_f16x16(typingctx, address, value):
    """16 floats as halves, rounded to nearest even."""

    def generate(context, b, sig, args):
        half = float_to_half(context, b, args[1])
        b.store(half, at(b, args[0], half.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_f16(typingctx, address, value):
    """One float as a half."""

    def generate(context, b, sig, args):
        half = float_to_half(context, b, b.insert_element(ir.Constant(ir.VectorType(FLOAT, 1), None), args[1], I32(0)))
        b.store(half, at(b, args[0], half.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def load_bf16x16(typingctx, address):
    """16 bfloat16 as float32."""
    return f32x16(types.int64), lambda context, b, sig, a: bf16_to_float(b, load(b, a[0], ir.VectorType(I16, 16)))


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
        b.store(byte, at(b, args[0], byte.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, i32x16), generate


@intrinsic
def store_i8(typingctx, address, value):
    """One float, a whole number of −127 … 127, as a byte."""

    def generate(context, b, sig, args):
        whole = call(b, "llvm.fptosi.sat.i32.f32", I32, args[1])
        b.store(b.trunc(whole, I8), at(b, args[0], I8), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


def _ask(b, address):
    call(b, "llvm.prefetch.p0", VOID, at(b, address, I8), I32(0), I32(3), I32(1))


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


# ---- register tiles: tuples of f32x16, one per token or row ----


def _zero_tile(count: int):
    tile = types.UniTuple(f32x16, count)

    def typer(typingctx):
        return tile(), lambda context, b, sig, a: cgutils.pack_array(b, [const(f32x16.llvm, 0.0)] * count)

    return typer


tile_of_1, tile_of_2, tile_of_4, tile_of_8, tile_of_16 = (
    named(f"tile_of_{n}", _zero_tile(n)) for n in (1, 2, 4, 8, 16)
)


@intrinsic
def tile_fma(typingctx, tile, vectors, address, stride):
    """tile[v·n + i] += vectors[v] · (the float32 at address + i·stride), for every vector; n rows = tile / vectors."""

    def generate(context, b, sig, args):
        tile, vectors, address, stride = args
        rows, columns = cgutils.unpack_tuple(b, tile), cgutils.unpack_tuple(b, vectors)
        n = len(rows) // len(columns)
        scalars = [load_splat(b, b.add(address, b.mul(stride, I64(i))), FLOAT, 16) for i in range(n)]
        out = [multiply_add(b, columns[i // n], scalars[i % n], row) for i, row in enumerate(rows)]
        return cgutils.pack_array(b, out)

    return tile(tile, vectors, types.int64, types.int64), generate


@intrinsic
def tile_times(typingctx, tile, address, stride):
    """tile[i] · (the 16 float32 at address + i·stride)."""

    def generate(context, b, sig, args):
        tile, address, stride = args
        factors = (load(b, b.add(address, b.mul(stride, I64(i))), f32x16.llvm) for i in range(sig.args[0].count))
        rows = cgutils.unpack_tuple(b, tile)
        return cgutils.pack_array(b, [b.fmul(row, factor) for row, factor in zip(rows, factors, strict=True)])

    return tile(tile, types.int64, types.int64), generate


@intrinsic
def tile_store(typingctx, tile, address, stride):
    """Store tile[i] at address + i·stride."""

    def generate(context, b, sig, args):
        tile, address, stride = args
        for i, row in enumerate(cgutils.unpack_tuple(b, tile)):
            b.store(row, at(b, b.add(address, b.mul(stride, I64(i))), f32x16.llvm), align=1)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), generate


def _tile_store_by(rows: int):
    def typer(typingctx, tile, address, stride):
        def generate(context, b, sig, args):
            tile, address, stride = args
            for k, row in enumerate(cgutils.unpack_tuple(b, tile)):
                where = b.add(address, b.mul(stride, I64(k % rows)))
                b.store(row, at(b, where, f32x16.llvm, 64 * (k // rows)), align=1)
            return context.get_dummy_value()

        return types.void(tile, types.int64, types.int64), generate

    return typer


# Store tile[n·v + i] at address + i·stride + 64·v: n rows of neighbouring vectors.
tile_store_by_2, tile_store_by_4 = (named(f"tile_store_by_{n}", _tile_store_by(n)) for n in (2, 4))


# ---- threads and time ----


@intrinsic
def atomic_load(typingctx, address):
    return types.int64(types.int64), lambda context, b, sig, a: b.load_atomic(at(b, a[0], I64), "acquire", 8)


@intrinsic
def atomic_store(typingctx, address, value):
    def generate(context, b, sig, args):
        b.store_atomic(args[1], at(b, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def atomic_add(typingctx, address, value):
    """Add, and return what was there before."""
    return types.int64(types.int64, types.int64), lambda context, b, sig, a: b.atomic_rmw(
        "add", at(b, a[0], I64), a[1], "acq_rel"
    )


@intrinsic
def compare_and_swap(typingctx, address, expected, value):
    """Whether the int64 at `address` was `expected`, and so is now `value`."""

    def generate(context, b, sig, args):
        pair = b.cmpxchg(at(b, args[0], I64), args[1], args[2], "acq_rel", "acquire")
        return b.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(typingctx):
    """Tell the core that this is a spin loop."""

    def generate(context, b, sig, args):
        have = features(context)
        if "x86" in have:
            call(b, "llvm.x86.sse2.pause", VOID)
        elif "aarch64" in have:
            call(b, "llvm.aarch64.hint", VOID, I32(1))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def clock(typingctx):
    """A steady tick counter (x86: the time-stamp counter; elsewhere LLVM's steady counter)."""

    def generate(context, b, sig, args):
        name = "llvm.readcyclecounter" if "x86" in features(context) else "llvm.readsteadycounter"
        return call(b, name, I64)

    return types.int64(), generate


@intrinsic
def call_kernel(typingctx, function, op, step, chunk, thread):
    """Call the kernel at address `function` (see kernels/__init__.py for its signature)."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(VOID, [I64] * 4)
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, i64), generate


@intrinsic
def call_system(typingctx, function):
    """Call the C function `int f(void)` at an address, e.g. sched_yield."""

    def generate(context, b, sig, args):
        b.call(b.inttoptr(args[0], ir.FunctionType(I32, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def call_read(typingctx, function, file, address, count, offset):
    """Call the C function `ssize_t pread(int, void *, size_t, off_t)` at an address."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(I64, [I32, I64, I64, I64])
        function, file, *others = args
        return b.call(b.inttoptr(function, kind.as_pointer()), [b.trunc(file, I32), *others])

    i64 = types.int64
    return i64(i64, i64, i64, i64, i64), generate


@intrinsic
def call_advise(typingctx, function, address, count, advice):
    """Call the C function `int madvise(void *, size_t, int)` at an address."""

    def generate(context, b, sig, args):
        kind = ir.FunctionType(I32, [I64, I64, I32])
        function, address, count, advice = args
        b.call(b.inttoptr(function, kind.as_pointer()), [address, count, b.trunc(advice, I32)])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64), generate


@intrinsic
def store_f64(typingctx, address, value):
    def generate(context, b, sig, args):
        b.store(args[1], at(b, args[0], ir.DoubleType()), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), generate


@intrinsic
def load_f64(typingctx, address):
    return types.float64(types.int64), lambda context, b, sig, a: load(b, a[0], ir.DoubleType())
