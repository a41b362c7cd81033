"""mxfp4: 4-bit floats, and a power of two for 32 (OCP's Microscaling FP4)."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import call, const, f32x16
from lapinfer.kernels.dots import looked_up
from lapinfer.kernels.reader import WIDE, Block, Reader, nibble, nibbles, unsigned
from lapinfer.kernels.simd import load_u8
from lapinfer.quant.formats.mxfp4 import LEAST, VALUES

TWICE = [int(2 * value) for value in VALUES]


def block(context, b, address):
    """The scale is half of 2^(exponent − 127), since the codes are twice the values."""
    above = call(b, "llvm.usub.sat.v16i32", WIDE, unsigned(b, address), const(WIDE, 1))
    scale = b.bitcast(b.shl(above, const(WIDE, 23)), f32x16.llvm)
    return Block([looked_up(context, b, codes, TWICE) for codes in nibbles(b, address, 16)], scale)


@jit
def element(head, block, row, column):
    code, exponent = nibble(block + 16, row, column), load_u8(block + row)
    magnitude = code & 7
    twice = magnitude + max(magnitude - 4, 0) + 2 * max(magnitude - 6, 0)
    value = np.float32(twice if code < 8 else -twice) * np.float32(2.0 ** (exponent - 128))
    return value if exponent >= LEAST else np.float32(0.0)


READER = Reader(element, block)
