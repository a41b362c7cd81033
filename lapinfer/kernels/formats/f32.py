"""f32: float32."""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import f32x16, load
from lapinfer.kernels.reader import Reader
from lapinfer.kernels.simd import load_f32


def column(context, b, address, offset=0):
    return load(b, address, f32x16.llvm, offset)


def group(context, b, address):
    return [column(context, b, address, 64 * k) for k in range(2)]


@jit
def element(head, block, row, column):
    return load_f32(block + 64 * column + 4 * row)


READER = Reader(element, column=column, group=group)
