"""q5: 5-bit codes around ZERO, and a float16 scale for 32."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import const, i8x64
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.reader import Block, Reader, halves, plane, plane_code
from lapinfer.quant.formats.q5 import ZERO

LOW, HIGH = 32, 32 + 256
"""Where the lower four bits of a block's codes begin, and the upper one."""


def block(context, b, address):
    parts = zip(plane(b, address, LOW, 4), plane(b, address, HIGH, 1, 4), strict=True)
    codes = [b.sub(b.or_(low, high), const(i8x64.llvm, ZERO)) for low, high in parts]
    return Block(codes, halves(context, b, address))


@jit
def element(head, block, row, column):
    code = plane_code(block + LOW, 4, row, column) + (plane_code(block + HIGH, 1, row, column) << 4)
    return load_f16(block + 2 * row) * np.float32(code - ZERO)


READER = Reader(element, block)
