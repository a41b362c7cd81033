"""Matrices of experts × the tokens that were routed to each, for every weight format.

Only the experts that have tokens are read. They come as tiles of at most 8 tokens (kernels/route.py), which the same
inner product as a dense matrix multiplies.
"""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.multiply import add_bias, multiply, store_activations
from lapinfer.kernels.operands import EACH, GATED, PLAIN, STORE, TILE
from lapinfer.kernels.products import PACKED
from lapinfer.kernels.simd import fma, load_f32, load_f32x16, load_i64, splat_f32, store_f32x16
from lapinfer.kernels.stamp import stamped


@jit
def add_weighted(o, tile, y, stride, first, blocks, tokens):
    """out[token] += weight · y for the tokens of a routed tile."""
    out, out_stride, scale = o.out, o.out_stride, o.scale
    for t in range(tokens):
        token = load_i64(o.rows + 8 * (TILE * tile + t))
        weight = splat_f32(load_f32(o.row_weights + 4 * (TILE * tile + t)) * scale)
        for r in range(blocks):
            place = out + token * out_stride + 64 * (first + r)
            store_f32x16(place, fma(load_f32x16(y + t * stride + 64 * r), weight, load_f32x16(place)))


@jit
def clear(o, step, first, blocks):
    """out[token] = 0 for all tokens, in some row blocks."""
    zero = splat_f32(np.float32(0.0))
    for t in range(step.tokens):
        for r in range(blocks):
            store_f32x16(o.out + t * o.out_stride + 64 * (first + r), zero)


@jit
def store_each(o, tile, y, stride, first, blocks, tokens):
    """out[row] = y for the rows of a tile."""
    for t in range(tokens):
        place = o.out + load_i64(o.rows + 8 * (TILE * tile + t)) * o.out_stride + 64 * first
        for r in range(blocks):
            store_f32x16(place + 64 * r, load_f32x16(y + t * stride + 64 * r))


@stamped(PACKED)
def experts(W, o, step, chunk, thread):
    """Row blocks of experts' matrices × the tokens that were routed to each.

    What becomes activations: a chunk is a few row blocks of one expert. What returns to the tokens: the same row
    blocks of all experts, so that a token's sum has one writer, and always the order of the experts.
    """
    unit, groups, row_blocks = o.unit, o.groups, o.row_blocks
    mode, x = o.mode, o.x
    tiled = mode in (GATED, PLAIN)
    begin, end = 0, step.expert_tiles
    first = chunk * unit
    if tiled:
        chunks = o.chunks
        active = o.active[chunk // chunks]
        begin, end = active.first_tile, active.stop_tile
        first = chunk % chunks * unit
    blocks = min(unit, row_blocks - first)
    y = o.scratch + thread * o.scratch_stride
    stride = 64 * unit
    if mode == STORE:
        clear(o, step, first, blocks)
    for tile in range(begin, end):
        entry = o.tiles[tile]
        expert, n = entry.expert, entry.tokens
        weights = load_i64(o.weights + 8 * expert) + o.offset
        inputs = entry.x if tiled else x + tile * o.tile_bytes
        multiply(W, weights, row_blocks, groups, first, blocks, inputs, n, y, stride)
        bias = o.bias
        if bias != 0:
            add_bias(bias + expert * o.bias_stride + 64 * first, y, stride, blocks, n)
        if tiled:
            store_activations(
                mode, o.activation, 0, y, stride, blocks, o.out, o.out_kind, o.out_groups,
                first // (4 if mode == GATED else 2), TILE * tile, n,
            )  # fmt: skip
        elif mode == EACH:
            store_each(o, tile, y, stride, first, blocks, n)
        else:
            add_weighted(o, tile, y, stride, first, blocks, n)
