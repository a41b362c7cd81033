"""The inner product of each weight format: one block of 16 rows × 32 columns times a tile of tokens.

product(acc, weights, x, token): acc[t] + W · x[token + t] for each of acc's tokens; `weights` is the address of
the block (layouts: lapinfer/quant), `x` of the activation tile's group (layout: operands.py).
Sums are in float32, group after group: the order never depends on the number of tokens.
"""

from llvmlite import ir
from numba.core import cgutils, types

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
    i32x16,
    load,
    load_splat,
    multiply_add,
    named,
)


def _codes(builder, x):
    """32 codes of one token, 4 columns in every lane: eight i8x64."""
    return [builder.bitcast(load_splat(builder, x, I32, 16, 4 * k), i8x64.llvm) for k in range(8)]


def _q4_weights(context, b, weights):
    """Codes of a q4 block as eight i8x64, scale and minimum."""
    half = ir.VectorType(I16, 16)
    nibble, codes = const(i8x64.llvm, 15), []
    for k in range(4):
        pair = load(b, weights, i8x64.llvm, 64 + 64 * k)
        words = b.bitcast(pair, ir.VectorType(I16, 32))
        high = b.bitcast(b.lshr(words, const(words.type, 4)), i8x64.llvm)
        codes += [b.and_(pair, nibble), b.and_(high, nibble)]
    scale, minimum = (half_to_float(context, b, load(b, weights, half, at)) for at in (0, 32))
    return codes, scale, minimum


def _q8_weights(context, b, weights):
    codes = [load(b, weights, i8x64.llvm, 32 + 64 * k) for k in range(8)]
    return codes, half_to_float(context, b, load(b, weights, ir.VectorType(I16, 16))), None


def _integer_product(read_weights, signed: bool, planes: int):
    """The product of a quantized format with activations of one (q8) or two (q16) int8 a number."""
    scales = 32 * TILE * planes  # where the scalars of a group of activations begin

    def typer(typingctx, acc, weights, x, token):
        def generate(context, b, sig, args):
            tile, weights, x, token = args
            codes, scale, minimum = read_weights(context, b, weights)
            rows = []
            for t, total in enumerate(cgutils.unpack_tuple(b, tile)):
                index = b.add(token, I64(t))
                column, scalar = b.add(x, b.mul(index, I64(32))), b.add(x, b.mul(index, I64(4)))
                dots = []
                for plane in range(planes):
                    activations = _codes(b, b.add(column, I64(32 * TILE * plane)))
                    if signed:
                        bias = load_splat(b, scalar, I32, 16, scales + (8 + 4 * plane) * TILE)
                        dots.append(dot_signed(context, b, codes, activations, bias))
                    else:
                        dots.append(dot_small(context, b, codes, activations))
                dot = dots[0]
                if planes == 2:  # below 2^28, so exact in 32 bits
                    dot = b.add(b.mul(dots[0], const(i32x16.llvm, 255)), dots[1])
                products = b.sitofp(dot, f32x16.llvm)
                x_scale = load_splat(b, scalar, FLOAT, 16, scales)
                total = multiply_add(b, products, b.fmul(scale, x_scale), total)
                if minimum is not None:
                    total = multiply_add(b, minimum, load_splat(b, scalar, FLOAT, 16, scales + 4 * TILE), total)
                rows.append(total)
            return cgutils.pack_array(b, rows)

        i64 = types.int64
        return acc(acc, i64, i64, i64), generate

    return typer


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


product_q4 = named("product_q4", _integer_product(_q4_weights, False, 1))
product_q8 = named("product_q8", _integer_product(_q8_weights, True, 1))
product_q4_q16 = named("product_q4_q16", _integer_product(_q4_weights, False, 2))
product_q8_q16 = named("product_q8_q16", _integer_product(_q8_weights, True, 2))
product_f32 = named("product_f32", _float_columns(4, _read_f32))
product_f16 = named("product_f16", _float_columns(2, _read_f16))
product_bf16 = named("product_bf16", _float_columns(2, _read_bf16))
