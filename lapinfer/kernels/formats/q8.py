"""q8: 8-bit codes, and a float16 scale for 32."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I16, f32x16, i8x64, load, load_splat
from lapinfer.kernels.conversions import half_to_float, load_f16
from lapinfer.kernels.reader import BYTES, WIDE, Block, Reader, halves
from lapinfer.kernels.simd import load_i8


def block(context, b, address):
    codes = [load(b, address, i8x64.llvm, 32 + 64 * k) for k in range(8)]
    return Block(codes, halves(context, b, address))


def group(context, b, address):
    scale = half_to_float(context, b, load_splat(b, address, I16, 16))
    codes = (b.sext(load(b, address, BYTES, 2 + 16 * k), WIDE) for k in range(2))
    return [b.fmul(b.sitofp(code, f32x16.llvm), scale) for code in codes]


@jit
def element(head, block, row, column):
    code = load_i8(block + 32 + 64 * (column // 4) + 4 * row + column % 4)
    return load_f16(block + 2 * row) * np.float32(code)


READER = Reader(element, block, group=group)
