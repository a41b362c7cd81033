"""Routers: a small matrix of floats × plain float32 rows.

Not a matmul: tiles of 8 tokens would spread a lone token's numbers over eight times as many cache lines, which the
cores that share this op would have to fetch from each other.
"""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import TILE
from lapinfer.kernels.products import COLUMNS
from lapinfer.kernels.register_tiles import tile_fma, tile_of_1, tile_of_8, tile_store
from lapinfer.kernels.simd import (
    load_f32x16,
    store_f32x16,
)
from lapinfer.kernels.stamp import stamped
from lapinfer.quant import BAND, GROUP


@jit
def products(W, zero, w, step, groups, x, x_stride):
    """16 rows times as many tokens as `zero` makes room for; column after column, whatever their number."""
    acc = zero()
    for g in range(groups):
        for column in range(GROUP):
            weights = W.column(w + W.column_bytes * column)
            acc = tile_fma(acc, (weights,), x + 4 * (GROUP * g + column), x_stride)
        w += step
    return acc


@stamped(COLUMNS)
def router(W, o, step, chunk, thread):
    """Row block `chunk` against all tokens; tokens after the last full tile one by one."""
    groups, x_stride, out_stride = o.groups, o.x_stride, o.out_stride
    bias, tokens = o.bias, step.tokens
    size = GROUP * W.column_bytes
    place = chunk % BAND
    width = min(BAND, o.row_blocks - (chunk - place))
    w = o.weights + (chunk - place) * groups * size + place * size
    out = o.out + 64 * chunk
    full = tokens // TILE * TILE
    for t in range(0, full, TILE):
        tile = products(W, tile_of_8, w, width * size, groups, o.x + t * x_stride, x_stride)
        tile_store(tile, out + t * out_stride, out_stride)
    for t in range(full, tokens):
        one = products(W, tile_of_1, w, width * size, groups, o.x + t * x_stride, x_stride)
        tile_store(one, out + t * out_stride, out_stride)
    if bias != 0:
        for t in range(tokens):
            logits = out + t * out_stride
            store_f32x16(logits, load_f32x16(logits) + load_f32x16(bias + 64 * chunk))
