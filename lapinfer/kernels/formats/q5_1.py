"""q5_1: 5-bit codes, and a float16 scale and minimum for 32."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import const, f32x16, i8x64, multiply_add
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.reader import Block, Reader, halves, plane, plane_code

LOW, HIGH = 64, 64 + 256
"""Where the lower four bits of a block's codes begin, and the upper one."""
MIDDLE = 16
"""Codes are multiplied as signed numbers around it: sums of pairs of larger ones go beyond 16 bits."""


def block(context, b, address):
    parts = zip(plane(b, address, LOW, 4), plane(b, address, HIGH, 1, 4), strict=True)
    codes = [b.sub(b.or_(low, high), const(i8x64.llvm, MIDDLE)) for low, high in parts]
    scale, minimum = halves(context, b, address), halves(context, b, address, 32)
    return Block(codes, scale, multiply_add(b, scale, const(f32x16.llvm, float(MIDDLE)), minimum))


@jit
def element(head, block, row, column):
    code = plane_code(block + LOW, 4, row, column) + (plane_code(block + HIGH, 1, row, column) << 4)
    return load_f16(block + 2 * row) * np.float32(code) + load_f16(block + 32 + 2 * row)


READER = Reader(element, block)
