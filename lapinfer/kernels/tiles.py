"""Activations as tiles of 8 tokens: the form in which matrices read them (layout: operands.py)."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import ACT_F32, ACT_Q8, F32_TILE_GROUP, Q8_TILE_GROUP, Q16_TILE_GROUP, TILE
from lapinfer.kernels.simd import (
    absolute,
    fma,
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
def store_codes(at, low, high):
    """32 whole numbers as bytes."""
    store_i8x16(at, low)
    store_i8x16(at + 16, high)


@jit
def store_bias(at, low, high):
    """−128 · their sum, for dot products that want one operand unsigned."""
    total = reduce_sum(low + high)
    store_i32(at, np.int32(f32(-128.0) * total) if total == total else np.int32(0))


@jit
def store_group(out, kind, groups, group, token, low, high):
    """Write columns 32·group … + 31 of one token: `low` holds the first 16, `high` the others.

    kind (operands.ACTIVATION_KINDS): float32; int8 with scale = max|x| / 127; or two int8 a number, with
    scale = max|x| / (255·127 + 127).
    """
    tile, i = token // TILE, token % TILE
    if kind == ACT_F32:
        base = out + (tile * groups + group) * F32_TILE_GROUP + 4 * i
        for column in range(16):
            store_f32(base + 4 * TILE * column, lane(low, column))
            store_f32(base + 4 * TILE * (column + 16), lane(high, column))
        return
    largest = reduce_max(maximum(absolute(low), absolute(high)))
    top = f32(127.0) if kind == ACT_Q8 else f32(255 * 127 + 127)
    inverse = splat_f32(top / largest if largest > f32(0.0) else f32(0.0))
    a, b = round_even(low * inverse), round_even(high * inverse)
    scale = largest * (f32(1.0) / top)
    total = scale * reduce_sum(a + b)
    if kind == ACT_Q8:
        base = out + (tile * groups + group) * Q8_TILE_GROUP
        store_codes(base + 32 * i, a, b)
        scalars = base + 32 * TILE + 4 * i
        store_bias(scalars + 8 * TILE, a, b)
    else:
        base = out + (tile * groups + group) * Q16_TILE_GROUP
        part = splat_f32(f32(1.0 / 255.0))
        a_high, b_high = round_even(a * part), round_even(b * part)
        a_low, b_low = fma(a_high, splat_f32(f32(-255.0)), a), fma(b_high, splat_f32(f32(-255.0)), b)
        store_codes(base + 32 * i, a_high, b_high)
        store_codes(base + 32 * TILE + 32 * i, a_low, b_low)
        scalars = base + 64 * TILE + 4 * i
        store_bias(scalars + 8 * TILE, a_high, b_high)
        store_bias(scalars + 12 * TILE, a_low, b_low)
    store_f32(scalars, scale)
    store_f32(scalars + 4 * TILE, total)
