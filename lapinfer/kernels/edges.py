"""The last columns of a width that is no multiple of a vector: what stands behind them belongs to other numbers."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.simd import iota, lane, splat_f32, store_f32, store_f32x16, where_less

f32 = np.float32


@jit
def inside(value, column, width):
    """16 columns from `column` on, with zeros after the width."""
    return where_less(iota() + splat_f32(f32(column)), splat_f32(f32(width)), value, splat_f32(f32(0.0)))


@jit
def store_inside(address, value, column, width):
    """Write those of 16 columns, from `column` on, that are within the width."""
    if column + 16 <= width:
        store_f32x16(address, value)
        return
    for i in range(width - column):
        store_f32(address + 4 * i, lane(value, i))
