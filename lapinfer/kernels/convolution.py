"""Short convolutions: gated ones (spec.ConvolutionSpec), between their two matrices, and those before a recurrence."""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.edges import inside, store_inside
from lapinfer.kernels.operands import SILU
from lapinfer.kernels.simd import fma, load_f32x16, load_i64, splat_f32, store_f32x16
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate

f32 = np.float32


@jit
def taps_of(o, row, own, position, slot, column):
    """Σ over the taps of 16 columns, of rows of `row` bytes, whose own input is left in the state."""
    taps, weight, bias = o.taps, o.weight + 4 * column, o.bias
    state = o.state + slot * taps * row + 4 * column
    store_f32x16(state + position % taps * row, own)
    total = splat_f32(f32(0.0))
    if bias != 0:
        total = load_f32x16(bias + 4 * column)
    for tap in range(max(taps - 1 - position, 0), taps):  # those before the first position would add nothing
        seen = load_f32x16(state + (position - (taps - 1 - tap)) % taps * row)
        total = fma(load_f32x16(weight + tap * row), seen, total)
    return total


@jit
def convolved(o, x, position, slot, column):
    """16 columns of a token's C · convolution; its B · x is left in the state."""
    width = o.width
    gate = x + 4 * column
    own = inside(load_f32x16(gate) * load_f32x16(gate + 8 * width), column, width)
    total = taps_of(o, 128 * o.groups, own, position, slot, column)
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


@kernel
def convolve_silu(o, step, chunk, thread):
    """The same of plain columns, which their own silu replaces."""
    width, unit = o.width, o.unit
    first = 32 * chunk * unit
    last = min(first + 32 * unit, width)
    for t in range(step.tokens):
        position, slot = load_i64(o.pos + 8 * t), load_i64(o.slot + 8 * t)
        x = o.x + t * o.x_stride
        for column in range(first, last, 16):
            own = inside(load_f32x16(x + 4 * column), column, width)
            total = taps_of(o, 128 * o.groups, own, position, slot, column)
            store_inside(x + 4 * column, activate(SILU, total), column, width)
