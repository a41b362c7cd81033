"""Half precision and bfloat16: to float32 and back, as code generation and as intrinsics."""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from llvmlite import ir
from numba.core import types

from lapinfer.kernels.codegen import FLOAT, HALF, I16, I32, const, f32x16, features, intrinsic, load, pointer


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
        b.store(half, pointer(b, args[0], half.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, f32x16), generate


@intrinsic
def store_f16(typingctx, address, value):
    """One float as a half."""

    def generate(context, b, sig, args):
        half = float_to_half(context, b, b.insert_element(ir.Constant(ir.VectorType(FLOAT, 1), None), args[1], I32(0)))
        b.store(half, pointer(b, args[0], half.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def store_bf16_above(typingctx, address, value):
    """One float ≥ 0 as the next bfloat16 that is not smaller."""

    def generate(context, b, sig, args):
        bits = b.bitcast(args[1], I32)
        upper = b.trunc(b.lshr(b.add(bits, I32(0xFFFF)), I32(16)), I16)
        b.store(upper, pointer(b, args[0], I16), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def load_bf16x16(typingctx, address):
    """16 bfloat16 as float32."""
    return f32x16(types.int64), lambda context, b, sig, a: bf16_to_float(b, load(b, a[0], ir.VectorType(I16, 16)))
