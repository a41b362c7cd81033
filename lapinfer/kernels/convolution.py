"""Gated short convolutions (spec.ConvolutionSpec), between their two matrices."""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import TOKENS, offsets
from lapinfer.kernels.simd import fma, iota, load_f32x16, load_i64, splat_f32, store_f32x16, where_less
from lapinfer.kernels.tiles import store_group

(
    X, X_STRIDE, WIDTH, WEIGHT, BIAS, TAPS, POS, SLOT, STATE, OUT, GROUPS, OUT_KIND, UNIT,
) = offsets("convolve")  # fmt: skip

f32 = np.float32


@jit
def inside(value, column, width):
    """16 columns from `column` on, with zeros behind the width: what was read there belongs to other numbers."""
    return where_less(iota() + splat_f32(f32(column)), splat_f32(f32(width)), value, splat_f32(f32(0.0)))


@jit
def convolved(op, x, position, slot, column):
    """16 columns of a token's C · convolution; its B · x is left in the state."""
    width, taps, row = load_i64(op + WIDTH), load_i64(op + TAPS), 128 * load_i64(op + GROUPS)
    at, weight, bias = x + 4 * column, load_i64(op + WEIGHT) + 4 * column, load_i64(op + BIAS)
    state = load_i64(op + STATE) + slot * taps * row + 4 * column
    own = inside(load_f32x16(at) * load_f32x16(at + 8 * width), column, width)
    store_f32x16(state + position % taps * row, own)
    total = splat_f32(f32(0.0))
    if bias != 0:
        total = load_f32x16(bias + 4 * column)
    for tap in range(max(taps - 1 - position, 0), taps):  # those before the first position would add nothing
        seen = load_f32x16(state + (position - (taps - 1 - tap)) % taps * row)
        total = fma(load_f32x16(weight + tap * row), seen, total)
    return inside(load_f32x16(at + 4 * width) * total, column, width)


@kernel
def convolve(op, step, chunk, thread):
    """Some groups of columns of all tokens, in the order of the step: so a token finds what earlier ones have left."""
    groups, unit = load_i64(op + GROUPS), load_i64(op + UNIT)
    first = chunk * unit
    for t in range(load_i64(step + 8 * TOKENS)):
        position, slot = load_i64(load_i64(op + POS) + 8 * t), load_i64(load_i64(op + SLOT) + 8 * t)
        x = load_i64(op + X) + t * load_i64(op + X_STRIDE)
        for g in range(first, min(first + unit, groups)):
            low, high = convolved(op, x, position, slot, 32 * g), convolved(op, x, position, slot, 32 * g + 16)
            store_group(load_i64(op + OUT), load_i64(op + OUT_KIND), groups, g, t, low, high)
