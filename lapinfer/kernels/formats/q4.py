"""q4: 4-bit codes, a byte each for scale and minimum of 32, and a float32 unit for a row."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I8, const, f32x16, load, load_splat, multiply_add
from lapinfer.kernels.reader import BYTES, WIDE, Block, Reader, nibble, nibbles, unsigned
from lapinfer.kernels.simd import load_f32, load_u8
from lapinfer.quant.formats.q4 import MINIMUM_STEP


def block(context, b, address):
    below = b.mul(unsigned(b, address, 16), const(WIDE, -MINIMUM_STEP))
    scale, minimum = b.sitofp(unsigned(b, address), f32x16.llvm), b.sitofp(below, f32x16.llvm)
    return Block(nibbles(b, address, 32), scale, minimum)


def group(context, b, address):
    scale, minimum = (b.uitofp(b.zext(load_splat(b, address, I8, 16, k), WIDE), f32x16.llvm) for k in range(2))
    below = b.fmul(minimum, const(f32x16.llvm, float(-MINIMUM_STEP)))
    pair = b.zext(load(b, address, BYTES, 2), WIDE)
    codes = b.and_(pair, const(WIDE, 15)), b.lshr(pair, const(WIDE, 4))
    return [multiply_add(b, b.uitofp(code, f32x16.llvm), scale, below) for code in codes]


@jit
def element(head, block, row, column):
    code = nibble(block + 32, row, column)
    value = load_u8(block + row) * code - MINIMUM_STEP * load_u8(block + 16 + row)
    return load_f32(head + 4 * row) * np.float32(value)


READER = Reader(element, block, group=group)
