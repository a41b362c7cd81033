"""Activations as tiles of 8 tokens: the form in which matrices read them (layout: operands.py)."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import F32_TILE_GROUP, Q8_TILE_GROUP, TILE
from lapinfer.kernels.simd import (
    absolute,
    lane,
    maximum,
    reduce_max,
    reduce_sum,
    round_even,
    splat_f32,
    store_f32,
    store_i8x16,
    store_i32,
)

f32 = np.float32


@jit
def store_group(out, q8, groups, group, token, low, high):
    """Write columns 32·group … + 31 of one token: `low` holds the first 16, `high` the others.

    As int8 codes with scale = max|x| / 127 when q8, else as float32.
    """
    tile, i = token // TILE, token % TILE
    if q8 == 0:
        base = out + (tile * groups + group) * F32_TILE_GROUP + 4 * i
        for column in range(16):
            store_f32(base + 4 * TILE * column, lane(low, column))
            store_f32(base + 4 * TILE * (column + 16), lane(high, column))
        return
    base = out + (tile * groups + group) * Q8_TILE_GROUP
    largest = reduce_max(maximum(absolute(low), absolute(high)))
    inverse = f32(127.0) / largest if largest > f32(0.0) else f32(0.0)
    a = round_even(low * splat_f32(inverse))
    b = round_even(high * splat_f32(inverse))
    store_i8x16(base + 32 * i, a)
    store_i8x16(base + 32 * i + 16, b)
    scale = largest * f32(1.0 / 127.0)
    total = reduce_sum(a + b)
    scalars = base + 32 * TILE + 4 * i
    store_f32(scalars, scale)
    store_f32(scalars + 4 * TILE, scale * total)
    store_i32(scalars + 8 * TILE, np.int32(f32(-128.0) * total) if total == total else np.int32(0))
