"""bf16: the upper half of a float32."""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import load
from lapinfer.kernels.conversions import bf16_to_float, load_bf16
from lapinfer.kernels.reader import HALVES, Reader


def column(context, b, address, offset=0):
    return bf16_to_float(b, load(b, address, HALVES, offset))


def group(context, b, address):
    return [column(context, b, address, 32 * k) for k in range(2)]


@jit
def element(head, block, row, column):
    return load_bf16(block + 32 * column + 2 * row)


READER = Reader(element, column=column, group=group)
