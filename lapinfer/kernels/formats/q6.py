"""q6: 6-bit codes around ZERO, a byte for the scale of 32, and a float32 unit for a row."""

import numpy as np
from llvmlite import ir

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I16, const, f32x16, i8x64, load
from lapinfer.kernels.reader import Block, Reader, nibble, nibbles, unsigned
from lapinfer.kernels.simd import load_f32, load_u8
from lapinfer.quant.formats.q6 import ZERO

LOW, HIGH = 16, 16 + 256
"""Where the lower four bits of a block's codes begin, and the upper two."""


def block(context, b, address):
    vector, pairs, three = i8x64.llvm, ir.VectorType(I16, 32), const(i8x64.llvm, 3)
    high = []
    for k in range(2):
        four = b.bitcast(load(b, address, vector, HIGH + 64 * k), pairs)
        high += [b.and_(b.bitcast(b.lshr(four, const(pairs, 2 * i)), vector), three) for i in range(4)]
    codes = []
    for low, upper in zip(nibbles(b, address, LOW), high, strict=True):
        shifted = b.bitcast(b.shl(b.bitcast(upper, pairs), const(pairs, 4)), vector)
        codes.append(b.sub(b.or_(low, shifted), const(vector, ZERO)))
    return Block(codes, b.uitofp(unsigned(b, address), f32x16.llvm))


@jit
def element(head, block, row, column):
    four = load_u8(block + HIGH + 64 * (column // 16) + 4 * row + column % 4)
    code = nibble(block + LOW, row, column) + ((four >> (column // 4 % 4 * 2) & 3) << 4)
    return load_f32(head + 4 * row) * np.float32(load_u8(block + row) * (code - ZERO))


READER = Reader(element, block)
