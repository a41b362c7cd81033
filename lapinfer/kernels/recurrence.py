"""Recurrences (spec.RecurrenceSpec), between their two matrices: one state for each head, token after token.

Columns of a state depend on no others, so a head's tokens run through 32 of its columns before the next ones begin: the
states before and after a token stay in the first-level cache. Sums run over the rows of a state in two halves, the even
rows and the odd ones, whatever the number of tokens: a prompt has the bits of single steps.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.edges import inside, store_inside
from lapinfer.kernels.elementwise import norm_head, squares_of_head
from lapinfer.kernels.operands import SILU, STATE_COLUMNS, TILE
from lapinfer.kernels.simd import (
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    maximum,
    minimum,
    splat_f32,
    store_f32x16,
)
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate, exp, sigmoid, softplus
from lapinfer.spec import STATES

f32 = np.float32
SMALLEST = f32(1e-6)  # added to the squared length of keys and queries, as in FLA's l2norm


@jit
def shorten(x, width, scale):
    """x / |x| · scale in place, of float32 x[width]; any width."""
    factor = scale / np.sqrt(squares_of_head(x, width, f32(1.0)) + SMALLEST)
    for i in range(0, width, 16):
        store_inside(x + 4 * i, load_f32x16(x + 4 * i) * splat_f32(factor), i, width)


@kernel
def rates(o, step, chunk, thread):
    """Rates of a tile of tokens, in place; of the delta rule, keys and queries of length 1 (and 1 / √k_dim)."""
    r = o.recurrence
    heads, key_heads, k_dim = r.heads, r.key_heads, r.k_dim
    least, most, zero = splat_f32(o.least), splat_f32(o.most), splat_f32(f32(0.0))
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        x = r.x + t * r.x_stride
        if r.delta != 0:
            for h in range(2 * key_heads):
                shorten(x + 4 * h * k_dim, k_dim, f32(1.0) / np.sqrt(f32(k_dim)) if h < key_heads else f32(1.0))
        keep = x + r.scalars_at
        write = keep + 4 * heads
        for h in range(0, heads, 16):
            rate = softplus(load_f32x16(keep + 4 * h) + load_f32x16(o.step + 4 * h))
            if r.delta != 0:
                store_inside(write + 4 * h, sigmoid(load_f32x16(write + 4 * h)), h, heads)
            else:
                rate = minimum(maximum(rate, least), most)
                store_inside(write + 4 * h, rate, h, heads)
            store_inside(keep + 4 * h, exp(zero - load_f32x16(o.decay + 4 * h) * rate), h, heads)


@jit
def read(state, k, k_dim):
    """Sᵀ k of a block's columns, in two vectors."""
    zero = splat_f32(f32(0.0))
    even_low, even_high, odd_low, odd_high = zero, zero, zero, zero
    for i in range(0, k_dim - 1, 2):
        row = state + 4 * STATE_COLUMNS * i
        even, odd = splat_f32(load_f32(k + 4 * i)), splat_f32(load_f32(k + 4 * i + 4))
        even_low = fma(load_f32x16(row), even, even_low)
        even_high = fma(load_f32x16(row + 64), even, even_high)
        odd_low = fma(load_f32x16(row + 128), odd, odd_low)
        odd_high = fma(load_f32x16(row + 192), odd, odd_high)
    if k_dim % 2 != 0:
        row = state + 4 * STATE_COLUMNS * (k_dim - 1)
        even = splat_f32(load_f32(k + 4 * (k_dim - 1)))
        even_low = fma(load_f32x16(row), even, even_low)
        even_high = fma(load_f32x16(row + 64), even, even_high)
    return even_low + odd_low, even_high + odd_high


@jit
def write_row(old, new, k, q, keep, low, high, out_low, out_high):
    """A row of the new state, α S + k wᵀ, and what it adds to Sᵀ q."""
    key, query = splat_f32(load_f32(k)), splat_f32(load_f32(q))
    row_low = fma(key, low, load_f32x16(old) * keep)
    row_high = fma(key, high, load_f32x16(old + 64) * keep)
    store_f32x16(new, row_low)
    store_f32x16(new + 64, row_high)
    return fma(row_low, query, out_low), fma(row_high, query, out_high)


@jit
def written(old, new, k, q, k_dim, keep, low, high):
    """Sᵀ q of a block's columns after its new state, α S + k wᵀ, was written."""
    zero = splat_f32(f32(0.0))
    even_low, even_high, odd_low, odd_high = zero, zero, zero, zero
    for i in range(0, k_dim - 1, 2):
        at = 4 * STATE_COLUMNS * i
        even_low, even_high = write_row(old + at, new + at, k + 4 * i, q + 4 * i, keep, low, high, even_low, even_high)
        at += 4 * STATE_COLUMNS
        odd_low, odd_high = write_row(
            old + at, new + at, k + 4 * i + 4, q + 4 * i + 4, keep, low, high, odd_low, odd_high
        )
    if k_dim % 2 != 0:
        last = k_dim - 1
        at = 4 * STATE_COLUMNS * last
        even_low, even_high = write_row(
            old + at, new + at, k + 4 * last, q + 4 * last, keep, low, high, even_low, even_high
        )
    return even_low + odd_low, even_high + odd_high


@jit
def clear(state, k_dim):
    """The state before the first position."""
    for i in range(0, 4 * STATE_COLUMNS * k_dim, 64):
        store_f32x16(state + i, splat_f32(f32(0.0)))


@kernel
def recur(o, step, chunk, thread):
    """A head's tokens in the order of the step: so a token finds what earlier ones have left."""
    r, head = o.recurrence, chunk
    heads, key_heads, k_dim, v_dim, blocks = r.heads, r.key_heads, r.k_dim, o.v_dim, o.blocks
    q_at = 4 * (head // (heads // key_heads)) * k_dim
    v_at = 4 * (2 * key_heads * k_dim + head * v_dim)
    rates_at, size = r.scalars_at + 4 * head, 4 * STATE_COLUMNS * k_dim
    between = heads * blocks * size
    skip = f32(0.0)
    if o.skip != 0:
        skip = load_f32(o.skip + 4 * head)
    for block in range(blocks):
        column = STATE_COLUMNS * block
        for t in range(step.tokens):
            position, slot = load_i64(o.pos + 8 * t), load_i64(o.slot + 8 * t)
            x = r.x + t * r.x_stride
            q, v = x + q_at, x + v_at + 4 * column
            k = q + 4 * key_heads * k_dim
            first = o.states + (slot * STATES * heads + head) * blocks * size + block * size
            old, new = first + (position + 1) % STATES * between, first + position % STATES * between
            if position == 0:
                clear(old, k_dim)
            keep, rate = splat_f32(load_f32(x + rates_at)), splat_f32(load_f32(x + rates_at + 4 * heads))
            low, high = inside(load_f32x16(v), column, v_dim), inside(load_f32x16(v + 64), column + 16, v_dim)
            w_low, w_high = low * rate, high * rate
            if r.delta != 0:
                read_low, read_high = read(old, k, k_dim)
                w_low, w_high = (low - keep * read_low) * rate, (high - keep * read_high) * rate
            out_low, out_high = written(old, new, k, q, k_dim, keep, w_low, w_high)
            if o.skip != 0:
                out_low, out_high = fma(splat_f32(skip), low, out_low), fma(splat_f32(skip), high, out_high)
            store_inside(v, out_low, column, v_dim)
            if column + 16 < v_dim:
                store_inside(v + 64, out_high, column + 16, v_dim)


@kernel
def gated_norm(o, step, chunk, thread):
    """Activation tiles of a tile of tokens; what came out of the heads is overwritten."""
    width, groups, norm_width, gate_first = o.width, o.groups, o.norm_width, o.gate_first
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        y, z = o.x + t * o.x_stride + o.y_at, o.x + t * o.x_stride + o.z_at
        if gate_first != 0:
            for i in range(0, width, 16):
                gated = load_f32x16(y + 4 * i) * activate(SILU, load_f32x16(z + 4 * i))
                store_inside(y + 4 * i, gated, i, width)
        if norm_width != 0:
            for i in range(0, width, norm_width):
                norm_head(y + 4 * i, norm_width, o.weight + 4 * i, o.eps)
        for g in range(groups):
            i = 32 * g
            low, high = load_f32x16(y + 4 * i), load_f32x16(y + 4 * i + 64)
            if gate_first == 0:
                low = low * activate(SILU, load_f32x16(z + 4 * i))
                high = high * activate(SILU, load_f32x16(z + 4 * i + 64))
            store_group(o.out, o.out_kind, groups, g, t, inside(low, i, width), inside(high, i + 16, width))
