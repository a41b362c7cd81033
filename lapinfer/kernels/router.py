"""Routers: a small matrix of floats × plain float32 rows.

Not a matmul: tiles of 8 tokens would spread a lone token's numbers over eight times as many cache lines, which the
cores that share this op would have to fetch from each other.
"""

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import TILE, TOKENS, offsets
from lapinfer.kernels.simd import (
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i64,
    store_f32x16,
    tile_fma,
    tile_of_1,
    tile_of_8,
    tile_store,
)
from lapinfer.quant import BAND, GROUP

WEIGHTS, ROW_BLOCKS, GROUPS, X, X_STRIDE, OUT, OUT_STRIDE, BIAS = offsets("router")


@jit
def products(load_weights, zero, column_bytes, w, step, groups, x, x_stride):
    """16 rows times as many tokens as `zero` makes room for; column after column, whatever their number."""
    acc = zero()
    for g in range(groups):
        for column in range(GROUP):
            weights = load_weights(w + column_bytes * column)
            acc = tile_fma(acc, (weights,), x + 4 * (GROUP * g + column), x_stride)
        w += step
    return acc


@jit
def logits(load_weights, column_bytes, op, step, chunk, thread):
    """Row block `chunk` against all tokens; tokens behind the last whole tile one by one."""
    groups, x_stride, out_stride = load_i64(op + GROUPS), load_i64(op + X_STRIDE), load_i64(op + OUT_STRIDE)
    row_blocks, bias, tokens = load_i64(op + ROW_BLOCKS), load_i64(op + BIAS), load_i64(step + 8 * TOKENS)
    size = GROUP * column_bytes
    place = chunk % BAND
    width = min(BAND, row_blocks - (chunk - place))
    w = load_i64(op + WEIGHTS) + (chunk - place) * groups * size + place * size
    out = load_i64(op + OUT) + 64 * chunk
    whole = tokens // TILE * TILE
    for t in range(0, whole, TILE):
        x = load_i64(op + X) + t * x_stride
        tile = products(load_weights, tile_of_8, column_bytes, w, width * size, groups, x, x_stride)
        tile_store(tile, out + t * out_stride, out_stride)
    for t in range(whole, tokens):
        x = load_i64(op + X) + t * x_stride
        one = products(load_weights, tile_of_1, column_bytes, w, width * size, groups, x, x_stride)
        tile_store(one, out + t * out_stride, out_stride)
    if bias != 0:
        for t in range(tokens):
            at = out + t * out_stride
            store_f32x16(at, load_f32x16(at) + load_f32x16(bias + 64 * chunk))


@kernel
def router_f32(op, step, chunk, thread):
    logits(load_f32x16, 64, op, step, chunk, thread)


@kernel
def router_f16(op, step, chunk, thread):
    logits(load_f16x16, 32, op, step, chunk, thread)


@kernel
def router_bf16(op, step, chunk, thread):
    logits(load_bf16x16, 32, op, step, chunk, thread)
