"""Row blocks of a packed matrix × one tile of tokens: what the dense and the expert kernels are made of.

A single token takes a band's row blocks side by side, as they lie in memory: one stream of weights, and the token's
own numbers are read once for all of them. Sums never depend on how many tokens or row blocks are taken at once.
"""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import GATED
from lapinfer.kernels.probe import target_features
from lapinfer.kernels.register_tiles import tile_of_1, tile_of_2, tile_of_4, tile_of_8, tile_store, tile_times
from lapinfer.kernels.simd import (
    load_f32x16,
    prefetch,
    store_f32x16,
)
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate, gated
from lapinfer.quant import BAND

AHEAD = 4096  # bytes: far enough for memory's latency, near enough to stay in the first-level cache
MOST_ROWS = 8 if "avx512f" in target_features() else 4  # row blocks whose sums fit the registers


@jit
def tile_of_tokens(W, zero, w, step, x, groups, token):
    """One row block times a register tile of tokens; its blocks are `step` bytes apart."""
    acc = zero()
    for _ in range(groups):
        acc = W.tokens(acc, w, x, token)
        w += step
        x += W.group_bytes
    return acc


@jit
def tile_of_rows(W, zero, bytes_at_once, w, step, x, groups, token):
    """Neighbouring row blocks times one token; `bytes_at_once`: of a block of each of them."""
    acc = zero()
    for _ in range(groups):
        for line in range(0, bytes_at_once, 64):
            prefetch(w + AHEAD + line)
        acc = W.rows(acc, w, x, token)
        w += step
        x += W.group_bytes
    return acc


@jit
def rows_at_once(place, width, left):
    """How many row blocks of a band of `width`, from `place` on, are multiplied together; `left` are wanted."""
    most = min(width - place, left)
    if most >= MOST_ROWS and place % MOST_ROWS == 0:
        return MOST_ROWS
    if most >= 4 and place % 4 == 0:
        return 4
    return 2 if most >= 2 and place % 2 == 0 else 1


@jit
def store_rows(W, zero, count, heads, w, step, x, groups, token, out):
    """`count` neighbouring row blocks times one token -> out [count, 16]; zero: a register tile of as many."""
    acc = tile_of_rows(W, zero, count * W.block_bytes, w, step, x, groups, token)
    if W.head_bytes != 0:
        acc = tile_times(acc, heads, W.head_bytes)
    tile_store(acc, out, 64)


@jit
def multiply(W, weights, row_blocks, groups, first, blocks, x, n, y, stride):
    """Row blocks first … first + blocks of a packed matrix times the n tokens of a tile -> y [n, blocks · 16].

    W: one of products.PACKED. stride: bytes from a token's y to the next one's.
    """
    r = 0
    while r < blocks:
        place = (first + r) % BAND
        band = first + r - place
        width = min(BAND, row_blocks - band)
        heads = weights + band * (W.head_bytes + groups * W.block_bytes)
        w = heads + width * W.head_bytes + place * W.block_bytes
        heads += place * W.head_bytes
        step = width * W.block_bytes
        if n > 2:  # a tile with unused tokens costs less than three single ones
            acc = tile_of_tokens(W, tile_of_8, w, step, x, groups, 0)
            if W.head_bytes != 0:
                acc = tile_times(acc, heads, 0)
            tile_store(acc, y + 64 * r, stride)
            r += 1
            continue
        count = rows_at_once(place, width, blocks - r)
        for i in range(n):
            out = y + i * stride + 64 * r
            if count == 8:
                store_rows(W, tile_of_8, 8, heads, w, step, x, groups, i, out)
            elif count == 4:
                store_rows(W, tile_of_4, 4, heads, w, step, x, groups, i, out)
            elif count == 2:
                store_rows(W, tile_of_2, 2, heads, w, step, x, groups, i, out)
            else:
                store_rows(W, tile_of_1, 1, heads, w, step, x, groups, i, out)
        r += count


@jit
def add_bias(bias, y, stride, blocks, tokens):
    """y[t] += bias, an address of float32 [blocks · 16], or 0: none."""
    if bias != 0:
        for t in range(tokens):
            for column in range(0, 64 * blocks, 64):
                place = y + t * stride + column
                store_f32x16(place, load_f32x16(place) + load_f32x16(bias + column))


@jit
def store_activations(mode, kind, y, stride, blocks, out, out_kind, groups, group, token, tokens):
    """Activation tiles of act(y), or (GATED) of act(gate) · up, from column group `group` and token `token` on."""
    wide = 4 if mode == GATED else 2  # row blocks that make a group of 32 outputs
    for t in range(tokens):
        for r in range(0, blocks, wide):
            value = y + t * stride + 64 * r
            if mode == GATED:
                low = gated(kind, load_f32x16(value), load_f32x16(value + 64))
                high = gated(kind, load_f32x16(value + 128), load_f32x16(value + 192))
            else:
                low = activate(kind, load_f32x16(value))
                high = activate(kind, load_f32x16(value + 64))
            store_group(out, out_kind, groups, group + r // wide, token + t, low, high)
