"""Matrix × tokens for every weight format, with what follows a matrix fused into it.

A chunk is `unit` row blocks (of 16 rows) against all tokens: its weights are read from memory once and stay in cache
for the other tokens, whether there is one token (decode) or a prompt.
"""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.multiply import add_bias, multiply, store_activations
from lapinfer.kernels.operands import ADD, GATED, HEAD, PLAIN, TILE
from lapinfer.kernels.products import PACKED
from lapinfer.kernels.simd import load_f32x16, reduce_max, splat_f32, store_f32, store_f32x16
from lapinfer.kernels.stamp import stamped
from lapinfer.kernels.vecmath import cap


@jit
def finish(o, y, stride, first, blocks, first_token, tokens, copy):
    """Bias, scale, and what the mode asks for; y: [tokens, blocks · 16] float32 in scratch."""
    mode, bias, out = o.mode, o.bias, o.out
    add_bias(bias if bias == 0 else bias + 64 * first, y, stride, blocks, tokens)
    if mode in (GATED, PLAIN):
        group = first // (4 if mode == GATED else 2) + copy * o.out_step
        store_activations(
            mode, o.activation, o.curve, y, stride, blocks, out, o.out_kind, o.out_groups, group, first_token, tokens
        )
        return
    out += copy * o.out_step
    scale = splat_f32(o.scale)
    out_stride = o.out_stride
    for t in range(tokens):
        for r in range(blocks):
            value = load_f32x16(y + t * stride + 64 * r) * scale
            place = out + (first_token + t) * out_stride + 64 * (first + r)
            if mode == ADD:
                value = value + load_f32x16(place)
            elif mode == HEAD:
                value = cap(value, o.softcap)
                best = o.block_max + 4 * ((first_token + t) * o.row_blocks + first + r)
                store_f32(best, reduce_max(value))
            store_f32x16(place, value)


@stamped(PACKED)
def matmul(W, o, step, chunk, thread):
    """Row blocks of weights × all tokens.

    There may be several matrices of one shape (`chunks` are of one of them), each with its own columns of x and out.
    """
    unit, groups, row_blocks = o.unit, o.groups, o.row_blocks
    chunks = o.chunks
    copy, first = chunk // chunks, chunk % chunks * unit
    blocks = min(unit, row_blocks - first)
    tokens = step[o.tokens]
    weights = o.weights + copy * o.weights_step
    y = o.scratch + thread * o.scratch_stride
    stride = 64 * unit
    for first_token in range(0, tokens, TILE):
        x = o.x + first_token // TILE * o.tile_bytes + copy * o.x_step
        n = min(TILE, tokens - first_token)
        multiply(W, weights, row_blocks, groups, first, blocks, x, n, y, stride)
        finish(o, y, stride, first, blocks, first_token, n, copy)
