"""The inner product of each weight format: one block of 16 rows × 32 columns times a tile of tokens.

product(acc, weights, x, token): acc[t] + W · x[token + t] for each of acc's tokens; `weights` is the address of
the block (layouts: lapinfer/quant), `x` of the activation tile's group (layout: operands.py).
Sums are in float32, group after group: the order never depends on the number of tokens.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from lapinfer.kernels.operands import TILE
from lapinfer.kernels.simd import (
    FLOAT,
    I16,
    I32,
    I64,
    bf16_to_float,
    const,
    dot_signed,
    dot_small,
    f32x16,
    half_to_float,
    i8x64,
    load,
    load_splat,
    multiply_add,
)

SCALES, SUMS, BIASES = 32 * TILE, 36 * TILE, 40 * TILE  # in a q8 activation group


def _codes(builder, x):
    """The 32 codes of one token, 4 columns in every lane: eight i8x64."""
    return [builder.bitcast(load_splat(builder, x, I32, 16, 4 * k), i8x64.llvm) for k in range(8)]


def _q4(typingctx, acc, weights, x, token):
    def generate(context, b, sig, args):
        tile, weights, x, token = args
        half = ir.VectorType(I16, 16)
        scale = half_to_float(context, b, load(b, weights, half))
        minimum = half_to_float(context, b, load(b, weights, half, 32))
        nibble = const(i8x64.llvm, 15)
        codes = []
        for k in range(4):
            pair = load(b, weights, i8x64.llvm, 64 + 64 * k)
            words = b.bitcast(pair, ir.VectorType(I16, 32))
            high = b.bitcast(b.lshr(words, const(words.type, 4)), i8x64.llvm)
            codes += [b.and_(pair, nibble), b.and_(high, nibble)]
        rows = []
        for t, total in enumerate(cgutils.unpack_tuple(b, tile)):
            column = b.add(x, b.mul(b.add(token, I64(t)), I64(32)))
            scalar = b.add(x, b.mul(b.add(token, I64(t)), I64(4)))
            products = b.sitofp(dot_small(context, b, codes, _codes(b, column)), f32x16.llvm)
            x_scale = load_splat(b, scalar, FLOAT, 16, SCALES)
            x_sum = load_splat(b, scalar, FLOAT, 16, SUMS)
            total = multiply_add(b, products, b.fmul(scale, x_scale), total)
            rows.append(multiply_add(b, minimum, x_sum, total))
        return cgutils.pack_array(b, rows)

    i64 = types.int64
    return acc(acc, i64, i64, i64), generate


def _q8(typingctx, acc, weights, x, token):
    def generate(context, b, sig, args):
        tile, weights, x, token = args
        scale = half_to_float(context, b, load(b, weights, ir.VectorType(I16, 16)))
        codes = [load(b, weights, i8x64.llvm, 32 + 64 * k) for k in range(8)]
        rows = []
        for t, total in enumerate(cgutils.unpack_tuple(b, tile)):
            column = b.add(x, b.mul(b.add(token, I64(t)), I64(32)))
            scalar = b.add(x, b.mul(b.add(token, I64(t)), I64(4)))
            bias = load_splat(b, scalar, I32, 16, BIASES)
            products = b.sitofp(dot_signed(context, b, codes, _codes(b, column), bias), f32x16.llvm)
            x_scale = load_splat(b, scalar, FLOAT, 16, SCALES)
            rows.append(multiply_add(b, products, b.fmul(scale, x_scale), total))
        return cgutils.pack_array(b, rows)

    i64 = types.int64
    return acc(acc, i64, i64, i64), generate


def _float_columns(element_bytes: int, read):
    """The product of a format whose columns are read as 16 floats each."""

    def typer(typingctx, acc, weights, x, token):
        def generate(context, b, sig, args):
            tile, weights, x, token = args
            rows = list(cgutils.unpack_tuple(b, tile))
            first = b.add(x, b.mul(token, I64(4)))
            for column in range(32):
                w = read(context, b, b.add(weights, I64(16 * element_bytes * column)))
                for t in range(len(rows)):
                    scalar = load_splat(b, first, FLOAT, 16, 4 * (TILE * column + t))
                    rows[t] = multiply_add(b, w, scalar, rows[t])
            return cgutils.pack_array(b, rows)

        i64 = types.int64
        return acc(acc, i64, i64, i64), generate

    return typer


def _read_f32(context, b, address):
    return load(b, address, f32x16.llvm)


def _read_f16(context, b, address):
    return half_to_float(context, b, load(b, address, ir.VectorType(I16, 16)))


def _read_bf16(context, b, address):
    return bf16_to_float(b, load(b, address, ir.VectorType(I16, 16)))


product_q4, product_q8 = intrinsic(_q4), intrinsic(_q8)
product_f32 = intrinsic(_float_columns(4, _read_f32))
product_f16 = intrinsic(_float_columns(2, _read_f16))
product_bf16 = intrinsic(_float_columns(2, _read_bf16))
