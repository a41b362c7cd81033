"""q4n: 4-bit codes of a table, and a float16 scale for 32."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.dots import looked_up
from lapinfer.kernels.reader import Block, Reader, halves, nibble, nibbles
from lapinfer.quant.formats.q4n import TABLE

CODES = 32
"""Where a block's codes begin."""
VALUES = np.array(TABLE, np.float32)


def block(context, b, address):
    codes = [looked_up(context, b, each, TABLE) for each in nibbles(b, address, CODES)]
    return Block(codes, halves(context, b, address))


@jit
def element(head, block, row, column):
    return load_f16(block + 2 * row) * VALUES[nibble(block + CODES, row, column)]


READER = Reader(element, block)
