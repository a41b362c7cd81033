"""Matrix × tokens for every weight format, with what follows a matrix fused into it.

A chunk is `unit` row blocks (of 16 rows) against all tokens: its weights are read from memory once and stay in cache
for the other tokens, whether there is one token (decode) or a prompt.
"""

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.multiply import add_bias, multiply, store_activations
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
from lapinfer.kernels.simd import load_f32, load_f32x16, load_i64, reduce_max, splat_f32, store_f32, store_f32x16
from lapinfer.kernels.vecmath import cap
from lapinfer.quant import FORMATS

(
    WEIGHTS, ROW_BLOCKS, GROUPS, UNIT, X, TILE_BYTES, TOKENS, MODE, OUT, OUT_STRIDE, BIAS, SCALE, SOFTCAP, ACTIVATION,
    OUT_GROUPS, OUT_KIND, BLOCK_MAX, SCRATCH, SCRATCH_STRIDE, CHUNKS, WEIGHTS_STEP, X_STEP, OUT_STEP,
) = offsets("matmul")  # fmt: skip

BYTES_F32, BYTES_F16, BYTES_BF16, BYTES_Q8, BYTES_Q4_1, BYTES_Q4, BYTES_MXFP4, BYTES_Q6 = (
    f.block_bytes for f in FORMATS.values()
)
NO_HEAD, HEAD_Q4, HEAD_Q6 = 0, FORMATS["q4"].head_bytes, FORMATS["q6"].head_bytes


@jit
def finish(op, y, stride, first, blocks, first_token, tokens, copy):
    """Bias, scale, and what the mode asks for; y: [tokens, blocks · 16] float32 in scratch."""
    mode, bias, out = load_i64(op + MODE), load_i64(op + BIAS), load_i64(op + OUT)
    add_bias(bias if bias == 0 else bias + 64 * first, y, stride, blocks, tokens)
    if mode in (GATED, PLAIN):
        group = first // (4 if mode == GATED else 2) + copy * load_i64(op + OUT_STEP)
        store_activations(
            mode, load_i64(op + ACTIVATION), y, stride, blocks, out, load_i64(op + OUT_KIND), load_i64(op + OUT_GROUPS),
            group, first_token, tokens,
        )  # fmt: skip
        return
    out += copy * load_i64(op + OUT_STEP)
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
    """Row blocks of weights × all tokens; tokens_of, rows_of: the format's products (products.py).

    There may be several matrices of one shape (`chunks` are of one of them), each with its own columns of x and out.
    """
    unit, groups, row_blocks = load_i64(op + UNIT), load_i64(op + GROUPS), load_i64(op + ROW_BLOCKS)
    chunks = load_i64(op + CHUNKS)
    copy, first = chunk // chunks, chunk % chunks * unit
    blocks = min(unit, row_blocks - first)
    tokens = load_i64(step + 8 * load_i64(op + TOKENS))
    weights = load_i64(op + WEIGHTS) + copy * load_i64(op + WEIGHTS_STEP)
    y = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    stride = 64 * unit
    for first_token in range(0, tokens, TILE):
        x = load_i64(op + X) + first_token // TILE * load_i64(op + TILE_BYTES) + copy * load_i64(op + X_STEP)
        n = min(TILE, tokens - first_token)
        multiply(
            tokens_of, rows_of, head_bytes, block_bytes, group_bytes, weights, row_blocks, groups, first, blocks, x, n,
            y, stride,
        )  # fmt: skip
        finish(op, y, stride, first, blocks, first_token, n, copy)


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
def matmul_mxfp4(op, step, chunk, thread):
    matmul(tokens_mxfp4, rows_mxfp4, NO_HEAD, BYTES_MXFP4, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_mxfp4_q16(op, step, chunk, thread):
    matmul(tokens_mxfp4_q16, rows_mxfp4_q16, NO_HEAD, BYTES_MXFP4, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q6(op, step, chunk, thread):
    matmul(tokens_q6, rows_q6, HEAD_Q6, BYTES_Q6, Q8_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_q6_q16(op, step, chunk, thread):
    matmul(tokens_q6_q16, rows_q6_q16, HEAD_Q6, BYTES_Q6, Q16_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f32(op, step, chunk, thread):
    matmul(tokens_f32, rows_f32, NO_HEAD, BYTES_F32, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_f16(op, step, chunk, thread):
    matmul(tokens_f16, rows_f16, NO_HEAD, BYTES_F16, F32_TILE_GROUP, op, step, chunk, thread)


@kernel
def matmul_bf16(op, step, chunk, thread):
    matmul(tokens_bf16, rows_bf16, NO_HEAD, BYTES_BF16, F32_TILE_GROUP, op, step, chunk, thread)
