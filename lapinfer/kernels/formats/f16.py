"""f16: IEEE half precision."""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.conversions import load_f16
from lapinfer.kernels.reader import Reader, halves


def group(context, b, address):
    return [halves(context, b, address, 32 * k) for k in range(2)]


@jit
def element(head, block, row, column):
    return load_f16(block + 32 * column + 2 * row)


READER = Reader(element, column=halves, group=group)
