"""The inner product of each weight format: blocks of 16 rows × 32 columns times one group of activations.

tokens(acc, weights, x, token): acc[t] + W · x[token + t] for each of acc's tokens; `weights` is the address of a
block (layouts: lapinfer/quant), `x` of the activation tile's group (layout: operands.py).
rows(acc, weights, x, token): acc[r] + W_r · x[token] for acc's row blocks, whose blocks lie side by side.
Sums are in float32, group after group: the order never depends on the number of tokens or rows.
"""

from llvmlite import ir
from numba.core import cgutils, types

from lapinfer.kernels.operands import TILE
from lapinfer.kernels.simd import (
    FLOAT,
    I8,
    I16,
    I32,
    I64,
    bf16_to_float,
    call,
    const,
    dot_signed,
    dot_small,
    f32x16,
    fp4_codes,
    half_to_float,
    i8x64,
    i32x16,
    load,
    load_splat,
    multiply_add,
    named,
)
from lapinfer.quant import FORMATS, MINIMUM_STEP, Q6_ZERO


def _product(generate):
    """An intrinsic (acc, weights, x, token) -> acc, of code that takes and returns lists of vectors."""

    def typer(typingctx, acc, weights, x, token):
        def code(context, b, sig, args):
            tile, weights, x, token = args
            rows = generate(context, b, list(cgutils.unpack_tuple(b, tile)), weights, x, token)
            return cgutils.pack_array(b, rows)

        i64 = types.int64
        return acc(acc, i64, i64, i64), code

    return typer


# ---- formats with integer codes ----


def _nibbles(b, weights, first: int):
    """Codes of a 4-bit block as eight i8x64."""
    nibble, codes = const(i8x64.llvm, 15), []
    for k in range(4):
        pair = load(b, weights, i8x64.llvm, first + 64 * k)
        words = b.bitcast(pair, ir.VectorType(I16, 32))
        high = b.bitcast(b.lshr(words, const(words.type, 4)), i8x64.llvm)
        codes += [b.and_(pair, nibble), b.and_(high, nibble)]
    return codes


def _halves(context, b, address, offset: int):
    return half_to_float(context, b, load(b, address, ir.VectorType(I16, 16), offset))


def _read_q8(context, b, weights):
    """Codes as eight i8x64, scale, and minimum (here none)."""
    return [load(b, weights, i8x64.llvm, 32 + 64 * k) for k in range(8)], _halves(context, b, weights, 0), None


def _read_q4_1(context, b, weights):
    return _nibbles(b, weights, 64), _halves(context, b, weights, 0), _halves(context, b, weights, 32)


def _read_q4(context, b, weights):
    bytes_, wide = ir.VectorType(I8, 16), i32x16.llvm
    scale, minimum = (b.zext(load(b, weights, bytes_, offset), wide) for offset in (0, 16))
    below = b.mul(minimum, const(wide, -MINIMUM_STEP))
    return _nibbles(b, weights, 32), b.sitofp(scale, f32x16.llvm), b.sitofp(below, f32x16.llvm)


def _read_mxfp4(context, b, weights):
    """The scale is half of 2^(exponent − 127), since the codes are twice the values."""
    wide = i32x16.llvm
    exponent = b.zext(load(b, weights, ir.VectorType(I8, 16)), wide)
    above = call(b, "llvm.usub.sat.v16i32", wide, exponent, const(wide, 1))
    scale = b.bitcast(b.shl(above, const(wide, 23)), f32x16.llvm)
    return [fp4_codes(context, b, nibbles) for nibbles in _nibbles(b, weights, 16)], scale, None


def _read_q6(context, b, weights):
    vector, pairs, three = i8x64.llvm, ir.VectorType(I16, 32), const(i8x64.llvm, 3)
    high = []
    for k in range(2):
        four = b.bitcast(load(b, weights, vector, 16 + 256 + 64 * k), pairs)
        high += [b.and_(b.bitcast(b.lshr(four, const(pairs, 2 * i)), vector), three) for i in range(4)]
    codes = []
    for low, upper in zip(_nibbles(b, weights, 16), high, strict=True):
        shifted = b.bitcast(b.shl(b.bitcast(upper, pairs), const(pairs, 4)), vector)
        codes.append(b.sub(b.or_(low, shifted), const(vector, Q6_ZERO)))
    scale = b.uitofp(b.zext(load(b, weights, ir.VectorType(I8, 16)), i32x16.llvm), f32x16.llvm)
    return codes, scale, None


class _Activations:
    """One token's group of 32 activations, of one (q8) or two (q16) int8 a number."""

    def __init__(self, b, x, index, planes: int, signed: bool):
        column, scalar = b.add(x, b.mul(index, I64(32))), b.add(x, b.mul(index, I64(4)))
        scales = 32 * TILE * planes  # where the scalars of a group begin
        self.codes = [
            [b.bitcast(load_splat(b, column, I32, 16, 32 * TILE * p + 4 * k), i8x64.llvm) for k in range(8)]
            for p in range(planes)
        ]
        self.bias = [
            load_splat(b, scalar, I32, 16, scales + (8 + 4 * p) * TILE) if signed else None for p in range(planes)
        ]
        self.scale = load_splat(b, scalar, FLOAT, 16, scales)
        self.sum = load_splat(b, scalar, FLOAT, 16, scales + 4 * TILE)


def _multiply(context, b, total, weights, x: _Activations):
    """total + weights · x of one block and one token."""
    codes, scale, minimum = weights
    dots = [
        dot_small(context, b, codes, plane) if bias is None else dot_signed(context, b, codes, plane, bias)
        for plane, bias in zip(x.codes, x.bias, strict=True)
    ]
    dot = dots[0]
    if len(dots) == 2:  # below 2^28, so exact in 32 bits
        dot = b.add(b.mul(dots[0], const(i32x16.llvm, 255)), dots[1])
    total = multiply_add(b, b.sitofp(dot, f32x16.llvm), b.fmul(scale, x.scale), total)
    return total if minimum is None else multiply_add(b, minimum, x.sum, total)


def _integer(format: str, read, planes: int):
    """tokens and rows of a quantized format."""
    signed, size = format in ("q8", "mxfp4", "q6"), FORMATS[format].block_bytes

    def tokens(context, b, totals, weights, x, token):
        block = read(context, b, weights)
        columns = (_Activations(b, x, b.add(token, I64(t)), planes, signed) for t in range(len(totals)))
        return [_multiply(context, b, total, block, one) for total, one in zip(totals, columns, strict=True)]

    def rows(context, b, totals, weights, x, token):
        one = _Activations(b, x, token, planes, signed)
        blocks = (read(context, b, b.add(weights, I64(size * r))) for r in range(len(totals)))
        return [_multiply(context, b, total, block, one) for total, block in zip(totals, blocks, strict=True)]

    suffix = "_q16" if planes == 2 else ""
    return named(f"tokens_{format}{suffix}", _product(tokens)), named(f"rows_{format}{suffix}", _product(rows))


# ---- formats of floats ----


def _floats(format: str, read):
    """tokens and rows of a format whose columns are read as 16 floats each."""
    size = FORMATS[format].block_bytes
    column_bytes = size // 32

    def tokens(context, b, totals, weights, x, token):
        first = b.add(x, b.mul(token, I64(4)))
        for column in range(32):
            w = read(context, b, b.add(weights, I64(column_bytes * column)))
            for t in range(len(totals)):
                scalar = load_splat(b, first, FLOAT, 16, 4 * (TILE * column + t))
                totals[t] = multiply_add(b, w, scalar, totals[t])
        return totals

    def rows(context, b, totals, weights, x, token):
        first = b.add(x, b.mul(token, I64(4)))
        for column in range(32):
            scalar = load_splat(b, first, FLOAT, 16, 4 * TILE * column)
            for r in range(len(totals)):
                w = read(context, b, b.add(weights, I64(size * r + column_bytes * column)))
                totals[r] = multiply_add(b, w, scalar, totals[r])
        return totals

    return named(f"tokens_{format}", _product(tokens)), named(f"rows_{format}", _product(rows))


def _read_f32(context, b, address):
    return load(b, address, f32x16.llvm)


def _read_f16(context, b, address):
    return _halves(context, b, address, 0)


def _read_bf16(context, b, address):
    return bf16_to_float(b, load(b, address, ir.VectorType(I16, 16)))


tokens_q8, rows_q8 = _integer("q8", _read_q8, 1)
tokens_q4_1, rows_q4_1 = _integer("q4_1", _read_q4_1, 1)
tokens_q4, rows_q4 = _integer("q4", _read_q4, 1)
tokens_q8_q16, rows_q8_q16 = _integer("q8", _read_q8, 2)
tokens_q4_1_q16, rows_q4_1_q16 = _integer("q4_1", _read_q4_1, 2)
tokens_q4_q16, rows_q4_q16 = _integer("q4", _read_q4, 2)
tokens_q6, rows_q6 = _integer("q6", _read_q6, 1)
tokens_q6_q16, rows_q6_q16 = _integer("q6", _read_q6, 2)
tokens_mxfp4, rows_mxfp4 = _integer("mxfp4", _read_mxfp4, 1)
tokens_mxfp4_q16, rows_mxfp4_q16 = _integer("mxfp4", _read_mxfp4, 2)
tokens_f32, rows_f32 = _floats("f32", _read_f32)
tokens_f16, rows_f16 = _floats("f16", _read_f16)
tokens_bf16, rows_bf16 = _floats("bf16", _read_bf16)
