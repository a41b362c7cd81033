"""q5: 5-bit codes around ZERO, and a float16 scale for 32."""

import numpy as np
from llvmlite import ir

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I16, const, i8x64, load
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.reader import Block, Reader, halves, nibble, nibbles
from lapinfer.kernels.simd import load_u8
from lapinfer.quant.formats.q5 import ZERO

LOW, HIGH = 32, 32 + 256
"""Where the lower four bits of a block's codes begin, and the upper one."""


def block(context, b, address):
    vector, pairs = i8x64.llvm, ir.VectorType(I16, 32)
    upper, codes = b.bitcast(load(b, address, vector, HIGH), pairs), []
    for i, low in enumerate(nibbles(b, address, LOW)):  # bit i of the line's bytes belongs above bit 3
        shifted = b.shl(upper, const(pairs, 4 - i)) if i < 4 else b.lshr(upper, const(pairs, i - 4))
        bit = b.and_(b.bitcast(shifted, vector), const(vector, 16))
        codes.append(b.sub(b.or_(low, bit), const(vector, ZERO)))
    return Block(codes, halves(context, b, address))


@jit
def element(head, block, row, column):
    bit = load_u8(block + HIGH + 4 * row + column % 4) >> column // 4 & 1
    code = nibble(block + LOW, row, column) + (bit << 4)
    return load_f16(block + 2 * row) * np.float32(code - ZERO)


READER = Reader(element, block)
