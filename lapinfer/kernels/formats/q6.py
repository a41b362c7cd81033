"""q6: 6-bit codes around ZERO, a byte for the scale of 32, and a float32 unit for a row."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import const, f32x16, i8x64
from lapinfer.kernels.reader import Block, Reader, plane, plane_code, unsigned
from lapinfer.kernels.simd import load_f32, load_u8
from lapinfer.quant.formats.q6 import ZERO

LOW, HIGH = 16, 16 + 256
"""Where the lower four bits of a block's codes begin, and the upper two."""


def block(context, b, address):
    parts = zip(plane(b, address, LOW, 4), plane(b, address, HIGH, 2, 4), strict=True)
    codes = [b.sub(b.or_(low, high), const(i8x64.llvm, ZERO)) for low, high in parts]
    return Block(codes, b.uitofp(unsigned(b, address), f32x16.llvm))


@jit
def element(head, block, row, column):
    code = plane_code(block + LOW, 4, row, column) + (plane_code(block + HIGH, 2, row, column) << 4)
    return load_f32(head + 4 * row) * np.float32(load_u8(block + row) * (code - ZERO))


READER = Reader(element, block)
