"""Matrix × tokens for every weight format, with what follows a matrix fused into it.

A chunk is `unit` row blocks (of 16 rows) against all tokens: its weights are read from memory once and stay in cache
for the other tokens, whether there is one token (decode) or a prompt. A single token takes a band's row blocks side
by side, as they lie in memory: one stream of weights, and the token's own numbers are read once for all of them.
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
from lapinfer.kernels.probe import target_features
from lapinfer.kernels.products import (
    rows_bf16,
    rows_f16,
    rows_f32,
    rows_q4,
    rows_q4_1,
    rows_q4_1_q16,
    rows_q4_q16,
    rows_q8,
    rows_q8_q16,
    tokens_bf16,
    tokens_f16,
    tokens_f32,
    tokens_q4,
    tokens_q4_1,
    tokens_q4_1_q16,
    tokens_q4_q16,
    tokens_q8,
    tokens_q8_q16,
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
    tile_of_4,
    tile_of_8,
    tile_store,
    tile_times,
)
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import activate, cap
from lapinfer.quant import BAND, FORMATS

(
    WEIGHTS, ROW_BLOCKS, GROUPS, UNIT, X, TOKENS, MODE, OUT, OUT_STRIDE, BIAS, SCALE, SOFTCAP, ACTIVATION,
    OUT_GROUPS, OUT_KIND, BLOCK_MAX, SCRATCH, SCRATCH_STRIDE,
) = offsets("matmul")  # fmt: skip

AHEAD = 4096  # bytes: far enough for memory's latency, near enough to stay in the first-level cache
MOST_ROWS = 8 if "avx512f" in target_features() else 4  # row blocks whose sums fit the registers
BYTES_F32, BYTES_F16, BYTES_BF16, BYTES_Q8, BYTES_Q4_1, BYTES_Q4 = (f.block_bytes for f in FORMATS.values())
NO_HEAD, HEAD_Q4 = 0, FORMATS["q4"].head_bytes


@jit
def tile_of_tokens(product, zero, group_bytes, w, step, x, groups, token):
    """One row block times a register tile of tokens; its blocks are `step` bytes apart."""
    acc = zero()
    for _ in range(groups):
        acc = product(acc, w, x, token)
        w += step
        x += group_bytes
    return acc


@jit
def tile_of_rows(product, zero, bytes_at_once, group_bytes, w, step, x, groups, token):
    """Neighbouring row blocks times one token; `bytes_at_once`: of a block of each of them."""
    acc = zero()
    for _ in range(groups):
        for line in range(0, bytes_at_once, 64):
            prefetch(w + AHEAD + line)
        acc = product(acc, w, x, token)
        w += step
        x += group_bytes
    return acc


@jit
def rows_at_once(place, width, left):
    """How many row blocks of a band of `width`, from `place` on, are multiplied together; `left` are wanted."""
    there = min(width - place, left)
    if there >= MOST_ROWS and place % MOST_ROWS == 0:
        return MOST_ROWS
    return 4 if there >= 4 and place % 4 == 0 else 1


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
def matmul(tokens_of, rows_of, head_bytes, block_bytes, group_bytes, op, step, chunk, thread):
    """Row blocks chunk·unit … of weights × all tokens; tokens_of, rows_of: the format's products (products.py)."""
    unit, groups, row_blocks = load_i64(op + UNIT), load_i64(op + GROUPS), load_i64(op + ROW_BLOCKS)
    first = chunk * unit
    blocks = min(unit, row_blocks - first)
    tokens = load_i64(step + 8 * load_i64(op + TOKENS))
    y = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    stride = 64 * unit
    for first_token in range(0, tokens, TILE):
        x = load_i64(op + X) + first_token // TILE * groups * group_bytes
        n = min(TILE, tokens - first_token)
        r = 0
        while r < blocks:
            place = (first + r) % BAND
            band = first + r - place
            width = min(BAND, row_blocks - band)
            heads = load_i64(op + WEIGHTS) + band * (head_bytes + groups * block_bytes)
            w = heads + width * head_bytes + place * block_bytes
            heads += place * head_bytes
            if n > 2:  # a tile with unused tokens costs less than three single ones
                acc = tile_of_tokens(tokens_of, tile_of_8, group_bytes, w, width * block_bytes, x, groups, 0)
                if head_bytes != 0:
                    acc = tile_times(acc, heads, 0)
                tile_store(acc, y + 64 * r, stride)
                r += 1
                continue
            count = rows_at_once(place, width, blocks - r)
            for i in range(n):
                out = y + i * stride + 64 * r
                if count == 8:
                    eight = tile_of_rows(
                        rows_of, tile_of_8, 8 * block_bytes, group_bytes, w, width * block_bytes, x, groups, i
                    )
                    if head_bytes != 0:
                        eight = tile_times(eight, heads, head_bytes)
                    tile_store(eight, out, 64)
                elif count == 4:
                    four = tile_of_rows(
                        rows_of, tile_of_4, 4 * block_bytes, group_bytes, w, width * block_bytes, x, groups, i
                    )
                    if head_bytes != 0:
                        four = tile_times(four, heads, head_bytes)
                    tile_store(four, out, 64)
                else:
                    one = tile_of_rows(
                        rows_of, tile_of_1, block_bytes, group_bytes, w, width * block_bytes, x, groups, i
                    )
                    if head_bytes != 0:
                        one = tile_times(one, heads, head_bytes)
                    tile_store(one, out, 64)
            r += count
        finish(op, y, stride, first, blocks, first_token, n)


@kernel
def matmul_q4(op, step, chunk, thread):
    matmul(tokens_q4, rows_q4, HEAD_Q4, BYTES_Q4, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q4_1(op, step, chunk, thread):
    matmul(tokens_q4_1, rows_q4_1, NO_HEAD, BYTES_Q4_1, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q8(op, step, chunk, thread):
    matmul(tokens_q8, rows_q8, NO_HEAD, BYTES_Q8, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q4_q16(op, step, chunk, thread):
    matmul(tokens_q4_q16, rows_q4_q16, HEAD_Q4, BYTES_Q4, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q4_1_q16(op, step, chunk, thread):
    matmul(tokens_q4_1_q16, rows_q4_1_q16, NO_HEAD, BYTES_Q4_1, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q8_q16(op, step, chunk, thread):
    matmul(tokens_q8_q16, rows_q8_q16, NO_HEAD, BYTES_Q8, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f32(op, step, chunk, thread):
    matmul(tokens_f32, rows_f32, NO_HEAD, BYTES_F32, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f16(op, step, chunk, thread):
    matmul(tokens_f16, rows_f16, NO_HEAD, BYTES_F16, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_bf16(op, step, chunk, thread):
    matmul(tokens_bf16, rows_bf16, NO_HEAD, BYTES_BF16, F32_TILE_GROUP, op, step, chunk, thread)
