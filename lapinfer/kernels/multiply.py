"""Row blocks of a packed matrix × one tile of tokens: what the dense and the expert kernels are made of.

The row blocks of a band are taken side by side, as they lie in memory: one stream of weights, whatever the number of
tokens, and a token's own numbers are at hand for all of them. Sums stay in first-level cache meanwhile.
"""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import GATED, XIELU
from lapinfer.kernels.simd import ask, load_f32x16, prefetch, splat_f32, store_f32x16
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate, gated, xielu
from lapinfer.quant import BAND

AHEAD = 4096  # bytes: far enough for memory's latency, near enough to stay in the first-level cache
SEVERAL = 4  # tokens from which on asking pays on every processor: arithmetic hides what it costs (bench/LOG.md)


@jit
def multiply(W, weights, row_blocks, groups, first, blocks, x, n, y, stride):
    """Row blocks first … first + blocks of a packed matrix times the n tokens of a tile -> y [n, blocks · 16].

    W: one of products.PACKED. stride: bytes from a token's y to the next one's.
    """
    zero = splat_f32(np.float32(0.0))
    for t in range(n):
        for r in range(blocks):
            store_f32x16(y + t * stride + 64 * r, zero)
    r = 0
    while r < blocks:
        place = (first + r) % BAND
        band = first + r - place
        width = min(BAND, row_blocks - band)
        count = min(width - place, blocks - r)
        heads = weights + band * (W.head_bytes + groups * W.block_bytes)
        w = heads + width * W.head_bytes + place * W.block_bytes
        out, tile = y + 64 * r, x
        for _ in range(groups):
            for i in range(count):
                for line in range(0, W.block_bytes, 64):
                    if n < SEVERAL:
                        prefetch(w + AHEAD + line)
                    else:
                        ask(w + AHEAD + line)
                W.add(w, tile, n, out + 64 * i, stride)
                w += W.block_bytes
            w += (width - count) * W.block_bytes
            tile += W.group_bytes
        if W.head_bytes != 0:
            for i in range(count):
                unit = load_f32x16(heads + (place + i) * W.head_bytes)
                for t in range(n):
                    at = out + t * stride + 64 * i
                    store_f32x16(at, load_f32x16(at) * unit)
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
def store_activations(mode, kind, curve, y, stride, blocks, out, out_kind, groups, group, token, tokens):
    """Activation tiles of act(y), or (GATED) of act(gate) · up, from column group `group` and token `token` on.

    curve: what XIELU is told by; 0 where it cannot be.
    """
    wide = 4 if mode == GATED else 2  # row blocks that make a group of 32 outputs
    for t in range(tokens):
        for r in range(0, blocks, wide):
            value = y + t * stride + 64 * r
            if mode == GATED:
                low = gated(kind, load_f32x16(value), load_f32x16(value + 64))
                high = gated(kind, load_f32x16(value + 128), load_f32x16(value + 192))
            elif kind == XIELU:
                low = xielu(curve, load_f32x16(value))
                high = xielu(curve, load_f32x16(value + 64))
            else:
                low = activate(kind, load_f32x16(value))
                high = activate(kind, load_f32x16(value + 64))
            store_group(out, out_kind, groups, group + r // wide, token + t, low, high)
