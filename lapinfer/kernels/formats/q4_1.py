"""q4_1: 4-bit codes, and a float16 scale and minimum for 32."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.reader import Block, Reader, halves, nibble, nibbles


def block(context, b, address):
    return Block(nibbles(b, address, 64), halves(context, b, address), halves(context, b, address, 32))


@jit
def element(head, block, row, column):
    code = nibble(block + 64, row, column)
    return load_f16(block + 2 * row) * np.float32(code) + load_f16(block + 32 + 2 * row)


READER = Reader(element, block)
