"""Activations as tiles of 8 tokens: the form in which matrices read them (layout: operands.py)."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import ACT_F32, ACT_Q8, F32_TILE_GROUP, Q8_TILE_GROUP, Q16_TILE_GROUP, TILE
from lapinfer.kernels.simd import (
    lane,
    largest_magnitude,
    minus_255_times,
    plus,
    reduce_sum_whole,
    splat_f32,
    store_f32,
    store_i8x16,
    store_i32,
    to_float,
    to_whole,
)

f32 = np.float32


@jit
def store_codes(at, low, high):
    """32 whole numbers as bytes."""
    store_i8x16(at, low)
    store_i8x16(at + 16, high)


@jit
def store_group(out, kind, groups, group, token, low, high):
    """Write columns 32·group … + 31 of one token: `low` holds the first 16, `high` the others.

    kind (operands.ACTIVATION_KINDS): float32; int8 with scale = max|x| / 127; or two int8 per number, with
    scale = max|x| / (255·127 + 127). Behind the codes stand, for each token, the scale, scale · Σ codes, and
    −128 · Σ codes for dot products that want one operand unsigned. A NaN makes the scale NaN, and so the outputs.
    """
    tile, i = token // TILE, token % TILE
    if kind == ACT_F32:
        base = out + (tile * groups + group) * F32_TILE_GROUP + 4 * i
        for column in range(16):
            store_f32(base + 4 * TILE * column, lane(low, column))
            store_f32(base + 4 * TILE * (column + 16), lane(high, column))
        return
    largest = largest_magnitude(low, high)
    top = f32(127.0) if kind == ACT_Q8 else f32(255 * 127 + 127)
    inverse = splat_f32(top / largest if largest > f32(0.0) else f32(0.0))
    a, b = to_whole(low * inverse), to_whole(high * inverse)
    total = reduce_sum_whole(plus(a, b))
    if kind == ACT_Q8:
        base = out + (tile * groups + group) * Q8_TILE_GROUP
        scalars = base + 32 * TILE + 4 * i
        store_codes(base + 32 * i, a, b)
        store_i32(scalars + 8 * TILE, np.int32(-128) * total)
    else:
        base = out + (tile * groups + group) * Q16_TILE_GROUP
        scalars = base + 64 * TILE + 4 * i
        part = splat_f32(f32(1.0 / 255.0))
        a_high, b_high = to_whole(to_float(a) * part), to_whole(to_float(b) * part)
        store_codes(base + 32 * i, a_high, b_high)
        store_codes(base + 32 * TILE + 32 * i, minus_255_times(a, a_high), minus_255_times(b, b_high))
        total_high = reduce_sum_whole(plus(a_high, b_high))
        store_i32(scalars + 8 * TILE, np.int32(-128) * total_high)
        store_i32(scalars + 12 * TILE, np.int32(-128) * (total - np.int32(255) * total_high))
    scale = largest * (f32(1.0) / top)
    store_f32(scalars, scale)
    store_f32(scalars + 4 * TILE, scale * f32(total))
