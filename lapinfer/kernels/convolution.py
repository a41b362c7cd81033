"""Gated short convolutions (spec.ConvolutionSpec), between their two matrices."""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.simd import fma, iota, load_f32x16, load_i64, splat_f32, store_f32x16, where_less
from lapinfer.kernels.tiles import store_group

f32 = np.float32


@jit
def inside(value, column, width):
    """16 columns from `column` on, with zeros after the width: what was read there belongs to other numbers."""
    return where_less(iota() + splat_f32(f32(column)), splat_f32(f32(width)), value, splat_f32(f32(0.0)))


@jit
def convolved(o, x, position, slot, column):
    """16 columns of a token's C · convolution; its B · x is left in the state."""
    width, taps, row = o.width, o.taps, 128 * o.groups
    gate, weight, bias = x + 4 * column, o.weight + 4 * column, o.bias
    state = o.state + slot * taps * row + 4 * column
    own = inside(load_f32x16(gate) * load_f32x16(gate + 8 * width), column, width)
    store_f32x16(state + position % taps * row, own)
    total = splat_f32(f32(0.0))
    if bias != 0:
        total = load_f32x16(bias + 4 * column)
    for tap in range(max(taps - 1 - position, 0), taps):  # those before the first position would add nothing
        seen = load_f32x16(state + (position - (taps - 1 - tap)) % taps * row)
        total = fma(load_f32x16(weight + tap * row), seen, total)
    return inside(load_f32x16(gate + 4 * width) * total, column, width)


@kernel
def convolve(o, step, chunk, thread):
    """Some groups of columns of all tokens, in the order of the step: so a token finds what earlier ones have left."""
    groups, unit = o.groups, o.unit
    first = chunk * unit
    for t in range(step.tokens):
        position, slot = load_i64(o.pos + 8 * t), load_i64(o.slot + 8 * t)
        x = o.x + t * o.x_stride
        for g in range(first, min(first + unit, groups)):
            low, high = convolved(o, x, position, slot, 32 * g), convolved(o, x, position, slot, 32 * g + 16)
            store_group(o.out, o.out_kind, groups, g, t, low, high)
