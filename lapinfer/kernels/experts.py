"""Matrices of experts × the tokens that were routed to each, for every weight format.

Only the experts that have tokens are read. They come as tiles of at most 8 tokens (kernels/route.py), which the same
inner product as a dense matrix multiplies.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.matmul import (
    BYTES_BF16,
    BYTES_F16,
    BYTES_F32,
    BYTES_MXFP4,
    BYTES_Q4,
    BYTES_Q4_1,
    BYTES_Q6,
    BYTES_Q8,
    HEAD_Q4,
    HEAD_Q6,
    NO_HEAD,
)
from lapinfer.kernels.multiply import add_bias, multiply, store_activations
from lapinfer.kernels.operands import (
    ACTIVE_EXPERT,
    EXPERT_TILE,
    EXPERT_TILES,
    F32_TILE_GROUP,
    FIRST_TILE,
    GATED,
    PLAIN,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    STOP_TILE,
    STORE,
    TILE,
    TILE_EXPERT,
    TILE_TOKENS,
    TILE_X,
    TOKENS,
    offsets,
)
from lapinfer.kernels.products import (
    rows_bf16,
    rows_f16,
    rows_f32,
    rows_mxfp4,
    rows_mxfp4_q16,
    rows_q4,
    rows_q4_1,
    rows_q4_1_q16,
    rows_q4_q16,
    rows_q6,
    rows_q6_q16,
    rows_q8,
    rows_q8_q16,
    tokens_bf16,
    tokens_f16,
    tokens_f32,
    tokens_mxfp4,
    tokens_mxfp4_q16,
    tokens_q4,
    tokens_q4_1,
    tokens_q4_1_q16,
    tokens_q4_q16,
    tokens_q6,
    tokens_q6_q16,
    tokens_q8,
    tokens_q8_q16,
)
from lapinfer.kernels.simd import fma, load_f32, load_f32x16, load_i64, splat_f32, store_f32x16

(
    WEIGHTS, OFFSET, ROW_BLOCKS, GROUPS, UNIT, CHUNKS, ACTIVE, TILES, ROWS, ROW_WEIGHTS, X,
    TILE_BYTES, MODE, OUT, OUT_STRIDE, BIAS, BIAS_STRIDE, SCALE, ACTIVATION, OUT_GROUPS, OUT_KIND,
    SCRATCH, SCRATCH_STRIDE,
) = offsets("experts")  # fmt: skip


@jit
def add_weighted(op, tile, y, stride, first, blocks, tokens):
    """out[token] += weight · y for the tokens of a routed tile."""
    out, out_stride, scale = load_i64(op + OUT), load_i64(op + OUT_STRIDE), load_f32(op + SCALE)
    for t in range(tokens):
        token = load_i64(load_i64(op + ROWS) + 8 * (TILE * tile + t))
        weight = splat_f32(load_f32(load_i64(op + ROW_WEIGHTS) + 4 * (TILE * tile + t)) * scale)
        for r in range(blocks):
            at = out + token * out_stride + 64 * (first + r)
            store_f32x16(at, fma(load_f32x16(y + t * stride + 64 * r), weight, load_f32x16(at)))


@jit
def experts(tokens_of, rows_of, head_bytes, block_bytes, group_bytes, op, step, chunk, thread):
    """Row blocks of experts' matrices × the tokens that were routed to each.

    What becomes activations: a chunk is a few row blocks of one expert. What returns to the tokens: the same row
    blocks of all experts, so that a token's sum has one writer, and always the order of the experts.
    """
    unit, groups, row_blocks = load_i64(op + UNIT), load_i64(op + GROUPS), load_i64(op + ROW_BLOCKS)
    mode, tiles, x = load_i64(op + MODE), load_i64(op + TILES), load_i64(op + X)
    tiled = mode in (GATED, PLAIN)
    begin, end = 0, load_i64(step + 8 * EXPERT_TILES)
    first = chunk * unit
    if tiled:
        chunks = load_i64(op + CHUNKS)
        active = load_i64(op + ACTIVE) + 8 * len(ACTIVE_EXPERT) * (chunk // chunks)
        begin, end = load_i64(active + 8 * FIRST_TILE), load_i64(active + 8 * STOP_TILE)
        first = chunk % chunks * unit
    blocks = min(unit, row_blocks - first)
    y = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    stride = 64 * unit
    if mode == STORE:
        zero = splat_f32(np.float32(0.0))
        for t in range(load_i64(step + 8 * TOKENS)):
            for r in range(blocks):
                store_f32x16(load_i64(op + OUT) + t * load_i64(op + OUT_STRIDE) + 64 * (first + r), zero)
    for tile in range(begin, end):
        entry = tiles + 8 * len(EXPERT_TILE) * tile
        expert, n = load_i64(entry + 8 * TILE_EXPERT), load_i64(entry + 8 * TILE_TOKENS)
        weights = load_i64(load_i64(op + WEIGHTS) + 8 * expert) + load_i64(op + OFFSET)
        inputs = load_i64(entry + 8 * TILE_X) if tiled else x + tile * load_i64(op + TILE_BYTES)
        multiply(
            tokens_of, rows_of, head_bytes, block_bytes, group_bytes, weights, row_blocks, groups, first, blocks,
            inputs, n, y, stride,
        )  # fmt: skip
        bias = load_i64(op + BIAS)
        if bias != 0:
            add_bias(bias + expert * load_i64(op + BIAS_STRIDE) + 64 * first, y, stride, blocks, n)
        if tiled:
            store_activations(
                mode, load_i64(op + ACTIVATION), y, stride, blocks, load_i64(op + OUT), load_i64(op + OUT_KIND),
                load_i64(op + OUT_GROUPS), first // (4 if mode == GATED else 2), TILE * tile, n,
            )  # fmt: skip
        else:
            add_weighted(op, tile, y, stride, first, blocks, n)


@kernel
def experts_q4(op, step, chunk, thread):
    experts(tokens_q4, rows_q4, HEAD_Q4, BYTES_Q4, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q4_1(op, step, chunk, thread):
    experts(tokens_q4_1, rows_q4_1, NO_HEAD, BYTES_Q4_1, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q8(op, step, chunk, thread):
    experts(tokens_q8, rows_q8, NO_HEAD, BYTES_Q8, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q4_q16(op, step, chunk, thread):
    experts(tokens_q4_q16, rows_q4_q16, HEAD_Q4, BYTES_Q4, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q4_1_q16(op, step, chunk, thread):
    experts(tokens_q4_1_q16, rows_q4_1_q16, NO_HEAD, BYTES_Q4_1, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q8_q16(op, step, chunk, thread):
    experts(tokens_q8_q16, rows_q8_q16, NO_HEAD, BYTES_Q8, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_mxfp4(op, step, chunk, thread):
    experts(tokens_mxfp4, rows_mxfp4, NO_HEAD, BYTES_MXFP4, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_mxfp4_q16(op, step, chunk, thread):
    experts(tokens_mxfp4_q16, rows_mxfp4_q16, NO_HEAD, BYTES_MXFP4, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q6(op, step, chunk, thread):
    experts(tokens_q6, rows_q6, HEAD_Q6, BYTES_Q6, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_q6_q16(op, step, chunk, thread):
    experts(tokens_q6_q16, rows_q6_q16, HEAD_Q6, BYTES_Q6, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_f32(op, step, chunk, thread):
    experts(tokens_f32, rows_f32, NO_HEAD, BYTES_F32, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_f16(op, step, chunk, thread):
    experts(tokens_f16, rows_f16, NO_HEAD, BYTES_F16, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def experts_bf16(op, step, chunk, thread):
    experts(tokens_bf16, rows_bf16, NO_HEAD, BYTES_BF16, F32_TILE_GROUP, op, step, chunk, thread)
