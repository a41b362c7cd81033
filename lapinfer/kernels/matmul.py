"""Matrix × tokens for every weight format, with what follows a matrix fused into it.

A chunk is `unit` blocks of 16 rows against all tokens: its weights are read from memory once and stay in cache
for the other tokens, whether there is one token (decode) or a prompt.
"""

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import (
    ADD,
    F32_TILE_GROUP,
    GATED,
    HEAD,
    PLAIN,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    TILE,
    offsets,
)
from lapinfer.kernels.products import (
    product_bf16,
    product_f16,
    product_f32,
    product_q4,
    product_q4_q16,
    product_q8,
    product_q8_q16,
)
from lapinfer.kernels.simd import (
    load_f32,
    load_f32x16,
    load_i64,
    prefetch,
    reduce_max,
    splat_f32,
    store_f32,
    store_f32x16,
    tile_of_1,
    tile_of_8,
    tile_store,
)
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate, cap
from lapinfer.quant import FORMATS

(
    WEIGHTS, ROW_BLOCKS, GROUPS, UNIT, X, TOKENS, MODE, OUT, OUT_STRIDE, BIAS, SCALE, SOFTCAP, ACTIVATION, OUT_GROUPS,
    OUT_KIND, BLOCK_MAX, SCRATCH, SCRATCH_STRIDE,
) = offsets("matmul")  # fmt: skip

AHEAD = 4096  # bytes: far enough for memory's latency, near enough to stay in the first-level cache
BYTES_F32, BYTES_F16, BYTES_BF16, BYTES_Q8, BYTES_Q4 = (f.block_bytes for f in FORMATS.values())


@jit
def rows_of_one(product, block_bytes, group_bytes, w, x, groups, token):
    """One block of 16 rows times one token."""
    acc = tile_of_1()
    for _ in range(groups):
        for line in range(0, block_bytes, 64):
            prefetch(w + AHEAD + line)
        acc = product(acc, w, x, token)
        w += block_bytes
        x += group_bytes
    return acc


@jit
def rows_of_tile(product, zero, block_bytes, group_bytes, w, x, groups, token):
    """One block of 16 rows times a register tile of tokens."""
    acc = zero()
    for _ in range(groups):
        acc = product(acc, w, x, token)
        w += block_bytes
        x += group_bytes
    return acc


@jit
def finish(op, y, stride, first, blocks, first_token, tokens):
    """Bias, scale, and what the mode asks for; y: [tokens, blocks · 16] float32 in scratch."""
    mode = load_i64(op + MODE)
    bias = load_i64(op + BIAS)
    out = load_i64(op + OUT)
    if bias != 0:
        for t in range(tokens):
            for r in range(blocks):
                at = y + t * stride + 64 * r
                store_f32x16(at, load_f32x16(at) + load_f32x16(bias + 64 * (first + r)))
    if mode in (GATED, PLAIN):
        kind, groups, out_kind = load_i64(op + ACTIVATION), load_i64(op + OUT_GROUPS), load_i64(op + OUT_KIND)
        wide = 4 if mode == GATED else 2  # row blocks that make a group of 32 outputs
        for t in range(tokens):
            for r in range(0, blocks, wide):
                at = y + t * stride + 64 * r
                if mode == GATED:
                    low = activate(kind, load_f32x16(at)) * load_f32x16(at + 64)
                    high = activate(kind, load_f32x16(at + 128)) * load_f32x16(at + 192)
                else:
                    low = activate(kind, load_f32x16(at))
                    high = activate(kind, load_f32x16(at + 64))
                store_group(out, out_kind, groups, (first + r) // wide, first_token + t, low, high)
        return
    scale = splat_f32(load_f32(op + SCALE))
    out_stride = load_i64(op + OUT_STRIDE)
    for t in range(tokens):
        for r in range(blocks):
            value = load_f32x16(y + t * stride + 64 * r) * scale
            at = out + (first_token + t) * out_stride + 64 * (first + r)
            if mode == ADD:
                value = value + load_f32x16(at)
            elif mode == HEAD:
                value = cap(value, load_f32(op + SOFTCAP))
                blocks_all = load_i64(op + ROW_BLOCKS)
                best = load_i64(op + BLOCK_MAX) + 4 * ((first_token + t) * blocks_all + first + r)
                store_f32(best, reduce_max(value))
            store_f32x16(at, value)


@jit
def matmul(product, zero, zero_tokens, block_bytes, group_bytes, op, step, chunk, thread):
    """Row blocks chunk·unit … of weights × all tokens; `zero` makes a register tile of `zero_tokens`."""
    unit, groups = load_i64(op + UNIT), load_i64(op + GROUPS)
    first = chunk * unit
    blocks = min(unit, load_i64(op + ROW_BLOCKS) - first)
    weights = load_i64(op + WEIGHTS) + first * groups * block_bytes
    tokens = load_i64(step + 8 * load_i64(op + TOKENS))
    y = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    stride = 64 * unit
    for first_token in range(0, tokens, TILE):
        x = load_i64(op + X) + first_token // TILE * groups * group_bytes
        n = min(TILE, tokens - first_token)
        for r in range(blocks):
            w = weights + r * groups * block_bytes
            if n > 2:  # a tile with unused tokens costs less than three single ones
                for i in range(0, n, zero_tokens):
                    acc = rows_of_tile(product, zero, block_bytes, group_bytes, w, x, groups, i)
                    tile_store(acc, y + i * stride + 64 * r, stride)
            else:
                for i in range(n):
                    one = rows_of_one(product, block_bytes, group_bytes, w, x, groups, i)
                    tile_store(one, y + i * stride + 64 * r, stride)
        finish(op, y, stride, first, blocks, first_token, n)


@kernel
def matmul_q4(op, step, chunk, thread):
    matmul(product_q4, tile_of_8, 8, BYTES_Q4, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q8(op, step, chunk, thread):
    matmul(product_q8, tile_of_8, 8, BYTES_Q8, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q4_q16(op, step, chunk, thread):
    matmul(product_q4_q16, tile_of_8, 8, BYTES_Q4, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q8_q16(op, step, chunk, thread):
    matmul(product_q8_q16, tile_of_8, 8, BYTES_Q8, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f32(op, step, chunk, thread):
    matmul(product_f32, tile_of_8, 8, BYTES_F32, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f16(op, step, chunk, thread):
    matmul(product_f16, tile_of_8, 8, BYTES_F16, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_bf16(op, step, chunk, thread):
    matmul(product_bf16, tile_of_8, 8, BYTES_BF16, F32_TILE_GROUP, op, step, chunk, thread)
