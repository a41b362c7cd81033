"""Products with matrices that are packed row by row (layouts: lapinfer/quant/rows.py): nodes, and neurons of leaves.

dot(acc, w, stride, x): acc += rows · tokens of one group of 32 columns; x are the addresses of the group in the rows
of N tokens, plain float32, w that of the group in the first of R rows. acc has two vectors, of 16 columns each, for
row 0 and each token, then for row 1, …: R is what its length says.
add(acc, w, h): acc += h[n] · one row's group, two vectors for each of N numbers.

Both work on float32 whatever the weights: a node's sign decides what is read, and a leaf of a few neurons is no work
for integers. Sums run over the columns, or neurons, in order: they do not depend on R or N.
"""

from llvmlite import ir
from numba.core import cgutils, types

from lapinfer.kernels.simd import (
    I8,
    I16,
    I32,
    I64,
    bf16_to_float,
    const,
    f32x16,
    half_to_float,
    load,
    load_splat,
    multiply_add,
    named,
    splat,
)
from lapinfer.quant import MINIMUM_STEP

FLOATS, WIDE, BYTES, HALVES = f32x16.llvm, ir.VectorType(I32, 16), ir.VectorType(I8, 16), ir.VectorType(I16, 16)


def _read_f32(context, b, address):
    return [load(b, address, FLOATS, 64 * k) for k in range(2)]


def _read_f16(context, b, address):
    return [half_to_float(context, b, load(b, address, HALVES, 32 * k)) for k in range(2)]


def _read_bf16(context, b, address):
    return [bf16_to_float(b, load(b, address, HALVES, 32 * k)) for k in range(2)]


def _read_q8(context, b, address):
    scale = half_to_float(context, b, load_splat(b, address, I16, 16))
    codes = (b.sext(load(b, address, BYTES, 2 + 16 * k), WIDE) for k in range(2))
    return [b.fmul(b.sitofp(code, FLOATS), scale) for code in codes]


def _read_q4(context, b, address):
    """Without the row's unit."""
    scale, minimum = (b.uitofp(b.zext(load_splat(b, address, I8, 16, k), WIDE), FLOATS) for k in range(2))
    below = b.fmul(minimum, const(FLOATS, float(-MINIMUM_STEP)))
    pair = b.zext(load(b, address, BYTES, 2), WIDE)
    codes = b.and_(pair, const(WIDE, 15)), b.lshr(pair, const(WIDE, 4))
    return [multiply_add(b, b.uitofp(code, FLOATS), scale, below) for code in codes]


def _dot(format: str, read):
    def typer(typingctx, acc, w, stride, x):
        def code(context, b, sig, args):
            acc, w, stride, x = args
            totals, tokens = list(cgutils.unpack_tuple(b, acc)), cgutils.unpack_tuple(b, x)
            columns = [[load(b, token, FLOATS, 64 * k) for k in range(2)] for token in tokens]
            for r in range(len(totals) // (2 * len(tokens))):
                row = read(context, b, b.add(w, b.mul(stride, I64(r))))
                for n, column in enumerate(columns):
                    for k in range(2):
                        i = 2 * (r * len(tokens) + n) + k
                        totals[i] = multiply_add(b, row[k], column[k], totals[i])
            return cgutils.pack_array(b, totals)

        return acc(acc, types.int64, types.int64, x), code

    return named(f"dot_{format}", typer)


def _add(format: str, read):
    def typer(typingctx, acc, w, h):
        def code(context, b, sig, args):
            acc, w, h = args
            totals, row = list(cgutils.unpack_tuple(b, acc)), read(context, b, w)
            for n, value in enumerate(cgutils.unpack_tuple(b, h)):
                for k in range(2):
                    totals[2 * n + k] = multiply_add(b, row[k], splat(b, value, 16), totals[2 * n + k])
            return cgutils.pack_array(b, totals)

        return acc(acc, types.int64, h), code

    return named(f"add_{format}", typer)


dot_f32, add_f32 = _dot("f32", _read_f32), _add("f32", _read_f32)
dot_f16, add_f16 = _dot("f16", _read_f16), _add("f16", _read_f16)
dot_bf16, add_bf16 = _dot("bf16", _read_bf16), _add("bf16", _read_bf16)
dot_q8, add_q8 = _dot("q8", _read_q8), _add("q8", _read_q8)
dot_q4, add_q4 = _dot("q4", _read_q4), _add("q4", _read_q4)
