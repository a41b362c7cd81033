"""What happens to a token between matrices: embedding, norms, rotation, and storing keys and values."""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import KEY_LANES, KV_F16, KV_F32, LAYER, NONE, TILE, TOKENS, offsets
from lapinfer.kernels.simd import (
    fma,
    iota,
    load_bf16,
    load_f16,
    load_f32,
    load_f32x16,
    load_i8,
    load_i64,
    load_u8,
    reduce_sum,
    splat_f32,
    store_f16,
    store_f32,
    store_f32x16,
    store_i8,
    where_less,
)
from lapinfer.kernels.tiles import store_group
from lapinfer.quant import BAND, FORMATS, MINIMUM_STEP, MXFP4_LEAST, Q6_ZERO

f32 = np.float32


# ---- embedding ----

(
    E_WEIGHTS, E_FORMAT, E_ROW_BLOCKS, E_GROUPS, E_HEAD_BYTES, E_BLOCK_BYTES, E_TOKEN, E_POS, E_POSITIONS,
    E_SCALE, E_OUT, E_OUT_STRIDE,
) = offsets("embed")  # fmt: skip
IN_F32, IN_F16, IN_BF16, IN_Q8, IN_Q4_1, IN_Q4, IN_MXFP4, IN_Q6 = range(len(FORMATS))


@jit
def element(kind, head, block, row, column):
    """One weight of a block whose row block has its head at `head` (layouts: lapinfer/quant)."""
    if kind == IN_F32:
        return load_f32(block + 64 * column + 4 * row)
    if kind == IN_F16:
        return load_f16(block + 32 * column + 2 * row)
    if kind == IN_BF16:
        return load_bf16(block + 32 * column + 2 * row)
    if kind == IN_Q8:
        return load_f16(block + 2 * row) * f32(load_i8(block + 32 + 64 * (column // 4) + 4 * row + column % 4))
    codes = block + (64 if kind == IN_Q4_1 else 32 if kind == IN_Q4 else 16)
    pair = load_u8(codes + 64 * (column // 8) + 4 * row + column % 4)
    code = pair & 15 if column % 8 < 4 else pair >> 4
    if kind == IN_Q4_1:
        return load_f16(block + 2 * row) * f32(code) + load_f16(block + 32 + 2 * row)
    if kind == IN_MXFP4:
        magnitude = code & 7
        twice = magnitude + max(magnitude - 4, 0) + 2 * max(magnitude - 6, 0)
        exponent = load_u8(block + row)
        value = f32(twice if code < 8 else -twice) * f32(2.0 ** (exponent - 128))
        return value if exponent >= MXFP4_LEAST else f32(0.0)
    if kind == IN_Q6:
        four = load_u8(block + 16 + 256 + 64 * (column // 16) + 4 * row + column % 4)
        code += (four >> (column // 4 % 4 * 2) & 3) << 4
        return load_f32(head + 4 * row) * f32(load_u8(block + row) * (code - Q6_ZERO))
    whole = load_u8(block + row) * code - MINIMUM_STEP * load_u8(block + 16 + row)
    return load_f32(head + 4 * row) * f32(whole)


@kernel
def embed(op, step, chunk, thread):
    """x[t] = embed[token[t]] · scale (+ positions[pos[t]]) for a tile of tokens."""
    kind, groups, row_blocks = load_i64(op + E_FORMAT), load_i64(op + E_GROUPS), load_i64(op + E_ROW_BLOCKS)
    head_bytes, block_bytes = load_i64(op + E_HEAD_BYTES), load_i64(op + E_BLOCK_BYTES)
    positions, scale = load_i64(op + E_POSITIONS), load_f32(op + E_SCALE)
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        token = load_i64(load_i64(op + E_TOKEN) + 8 * t)
        place = token // 16 % BAND
        band = token // 16 - place
        width = min(BAND, row_blocks - band)
        head = load_i64(op + E_WEIGHTS) + band * (head_bytes + groups * block_bytes)
        block = head + width * head_bytes + place * block_bytes
        head += place * head_bytes
        out = load_i64(op + E_OUT) + t * load_i64(op + E_OUT_STRIDE)
        learned = positions + load_i64(load_i64(op + E_POS) + 8 * t) * groups * 128
        for g in range(groups):
            for column in range(32):
                value = element(kind, head, block + g * width * block_bytes, token % 16, column) * scale
                if positions != 0:
                    value += load_f32(learned + 128 * g + 4 * column)
                store_f32(out + 128 * g + 4 * column, value)


# ---- norms ----


@jit
def statistics(kind, x, width, eps):
    """What is subtracted, and what the difference is multiplied with, to norm float32 x[width] at an address."""
    mean = f32(0.0)
    total = splat_f32(f32(0.0))
    if kind == NONE:
        return f32(0.0), f32(1.0)
    if kind == LAYER:
        for i in range(0, width, 16):
            total = total + load_f32x16(x + 4 * i)  # columns behind the width are zero
        mean = reduce_sum(total) / f32(width)
        total = splat_f32(f32(0.0))
    for i in range(0, width, 16):
        inside = iota() + splat_f32(f32(i))
        centred = load_f32x16(x + 4 * i) - splat_f32(mean)
        centred = where_less(inside, splat_f32(f32(width)), centred, splat_f32(f32(0.0)))
        total = fma(centred, centred, total)
    return mean, f32(1.0) / np.sqrt(reduce_sum(total) / f32(width) + eps)


@jit
def normed(kind, x, mean, factor, weight, bias):
    """16 columns of the norm of x; `weight` and `bias` are addresses (bias may be 0)."""
    value = load_f32x16(x)
    if kind == NONE:
        return value
    value = (value - splat_f32(mean)) * splat_f32(factor) * load_f32x16(weight)
    if bias != 0:
        value = value + load_f32x16(bias)
    return value


(
    N_X, N_X_STRIDE, N_WIDTH, N_WEIGHT, N_BIAS, N_EPS, N_NORM, N_ROWS, N_TOKENS, N_OUT, N_GROUPS, N_OUT_KIND, N_EXACT,
) = offsets("norm")  # fmt: skip


@kernel
def norm(op, step, chunk, thread):
    """A tile of tokens of x, normed, as activation tiles."""
    kind, rows, groups = load_i64(op + N_NORM), load_i64(op + N_ROWS), load_i64(op + N_GROUPS)
    weight, bias = load_i64(op + N_WEIGHT), load_i64(op + N_BIAS)
    tokens = load_i64(step + 8 * load_i64(op + N_TOKENS))
    for t in range(chunk * TILE, min(chunk * TILE + TILE, tokens)):
        row = t if rows == 0 else load_i64(rows + 8 * t)
        x = load_i64(op + N_X) + row * load_i64(op + N_X_STRIDE)
        mean, factor = statistics(kind, x, load_i64(op + N_WIDTH), load_f32(op + N_EPS))
        for g in range(groups):
            at = 128 * g
            low = normed(kind, x + at, mean, factor, weight + at, bias if bias == 0 else bias + at)
            high = normed(kind, x + at + 64, mean, factor, weight + at + 64, bias if bias == 0 else bias + at + 64)
            if load_i64(op + N_OUT) != 0:
                store_group(load_i64(op + N_OUT), load_i64(op + N_OUT_KIND), groups, g, t, low, high)
            if load_i64(op + N_EXACT) != 0:
                exact = load_i64(op + N_EXACT) + 128 * (t * groups + g)
                store_f32x16(exact, low)
                store_f32x16(exact + 64, high)


(A_Y, A_Y_STRIDE, A_WIDTH, A_WEIGHT, A_BIAS, A_EPS, A_NORM, A_X, A_X_STRIDE, A_SCALE) = offsets("add_norm")


@kernel
def add_norm(op, step, chunk, thread):
    """x[t] += scale · norm(y[t]) for a tile of tokens."""
    kind, weight, bias = load_i64(op + A_NORM), load_i64(op + A_WEIGHT), load_i64(op + A_BIAS)
    width, scale = load_i64(op + A_WIDTH), splat_f32(load_f32(op + A_SCALE))
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        y = load_i64(op + A_Y) + t * load_i64(op + A_Y_STRIDE)
        x = load_i64(op + A_X) + t * load_i64(op + A_X_STRIDE)
        mean, factor = statistics(kind, y, width, load_f32(op + A_EPS))
        for at in range(0, 4 * width, 64):
            value = normed(kind, y + at, mean, factor, weight + at, bias if bias == 0 else bias + at)
            store_f32x16(x + at, fma(value, scale, load_f32x16(x + at)))


# ---- heads: norm, rotation, cache ----

(
    R_QKV, R_QKV_STRIDE, R_HEADS, R_KV_HEADS, R_K_DIM, R_V_DIM, R_ROPE, R_ROPE_DIM, R_INTERLEAVED, R_POS, R_SLOT, R_KV,
    R_K_CACHE, R_V_CACHE, R_K_SCALE, R_V_SCALE, R_CAPACITY, R_Q_NORM, R_K_NORM, R_NORM_FULL, R_EPS, R_CLIP,
) = offsets("rope_store")  # fmt: skip


@jit
def norm_head(x, width, weight, eps):
    """RMS norm of float32 x[width] in place; any width."""
    total = splat_f32(f32(0.0))
    whole = width // 16 * 16
    for i in range(0, whole, 16):
        value = load_f32x16(x + 4 * i)
        total = fma(value, value, total)
    squares = reduce_sum(total)
    for i in range(whole, width):
        squares += load_f32(x + 4 * i) * load_f32(x + 4 * i)
    factor = f32(1.0) / np.sqrt(squares / f32(width) + eps)
    for i in range(0, whole, 16):
        store_f32x16(x + 4 * i, load_f32x16(x + 4 * i) * splat_f32(factor) * load_f32x16(weight + 4 * i))
    for i in range(whole, width):
        store_f32(x + 4 * i, load_f32(x + 4 * i) * factor * load_f32(weight + 4 * i))


@jit
def rotate(x, table, dim, interleaved):
    """Turn the pairs of x[dim] in place; table: cos [dim/2], then sin [dim/2]."""
    half = dim // 2
    sines = table + 4 * half
    whole = 0 if interleaved else half // 16 * 16
    for i in range(0, whole, 16):
        a, b = load_f32x16(x + 4 * i), load_f32x16(x + 4 * (half + i))
        c, s = load_f32x16(table + 4 * i), load_f32x16(sines + 4 * i)
        store_f32x16(x + 4 * i, a * c - b * s)
        store_f32x16(x + 4 * (half + i), b * c + a * s)
    for i in range(whole, half):
        first = x + 8 * i if interleaved else x + 4 * i
        second = first + 4 if interleaved else first + 4 * half
        a, b = load_f32(first), load_f32(second)
        c, s = load_f32(table + 4 * i), load_f32(sines + 4 * i)
        store_f32(first, a * c - b * s)
        store_f32(second, b * c + a * s)


@jit
def store_vector(kind, x, width, out, stride, scale):
    """Write float32 x[width] to the cache, elements `stride` elements apart; q8 also writes its scale."""
    if kind == KV_F32:
        for i in range(width):
            store_f32(out + 4 * stride * i, load_f32(x + 4 * i))
        return
    if kind == KV_F16:
        for i in range(width):
            store_f16(out + 2 * stride * i, load_f32(x + 4 * i))
        return
    largest = f32(0.0)
    for i in range(width):
        largest = max(largest, abs(load_f32(x + 4 * i)))
    inverse = f32(127.0) / largest if largest > f32(0.0) else f32(0.0)
    for i in range(width):
        store_i8(out + stride * i, np.rint(load_f32(x + 4 * i) * inverse))
    store_f32(scale, largest / f32(127.0))


@jit
def heads_of_one(op, qkv, position, slot):
    """Norm, rotation and storing for one token's heads."""
    heads, kv_heads, k_dim = load_i64(op + R_HEADS), load_i64(op + R_KV_HEADS), load_i64(op + R_K_DIM)
    v_dim, kind, capacity = load_i64(op + R_V_DIM), load_i64(op + R_KV), load_i64(op + R_CAPACITY)
    v_lanes = (v_dim + 15) // 16 * 16
    keys = qkv + 4 * heads * k_dim
    values = keys + 4 * kv_heads * k_dim
    q_norm, k_norm, eps = load_i64(op + R_Q_NORM), load_i64(op + R_K_NORM), load_f32(op + R_EPS)
    if q_norm != 0:
        if load_i64(op + R_NORM_FULL) != 0:
            norm_head(qkv, heads * k_dim, q_norm, eps)
            norm_head(keys, kv_heads * k_dim, k_norm, eps)
        else:
            for h in range(heads + kv_heads):
                norm_head(qkv + 4 * h * k_dim, k_dim, q_norm if h < heads else k_norm, eps)
    limit = load_f32(op + R_CLIP)
    if limit > f32(0.0):
        for i in range((heads + kv_heads) * k_dim + kv_heads * v_dim):
            store_f32(qkv + 4 * i, min(max(load_f32(qkv + 4 * i), -limit), limit))
    rope, dim = load_i64(op + R_ROPE), load_i64(op + R_ROPE_DIM)
    if rope != 0:
        for h in range(heads + kv_heads):
            rotate(qkv + 4 * h * k_dim, rope + 4 * dim * position, dim, load_i64(op + R_INTERLEAVED) != 0)
    place = position % capacity
    size = 4 if kind == KV_F32 else 2 if kind == KV_F16 else 1
    for h in range(kv_heads):
        row = (slot * kv_heads + h) * capacity  # keys and values of this head before it
        k_out = load_i64(op + R_K_CACHE) + size * ((row + place - place % KEY_LANES) * k_dim + place % KEY_LANES)
        v_out = load_i64(op + R_V_CACHE) + size * (row + place) * v_lanes
        scale = 4 * (row + place)
        store_vector(kind, keys + 4 * h * k_dim, k_dim, k_out, KEY_LANES, load_i64(op + R_K_SCALE) + scale)
        store_vector(kind, values + 4 * h * v_dim, v_dim, v_out, 1, load_i64(op + R_V_SCALE) + scale)


@kernel
def rope_store(op, step, chunk, thread):
    """Norm and rotate the heads of a tile of tokens, and store their keys and values."""
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        position = load_i64(load_i64(op + R_POS) + 8 * t)
        slot = load_i64(load_i64(op + R_SLOT) + 8 * t)
        heads_of_one(op, load_i64(op + R_QKV) + t * load_i64(op + R_QKV_STRIDE), position, slot)


(
    L_Q, L_Q_STRIDE, L_QKV, L_QKV_STRIDE, L_KV_AT, L_HEADS, L_NOPE, L_RANK, L_ROPE, L_ROPE_DIM, L_INTERLEAVED, L_POS,
    L_SLOT, L_KV, L_K_CACHE, L_V_CACHE, L_K_SCALE, L_V_SCALE, L_CAPACITY, L_NORM, L_EPS, L_OUT, L_GROUPS, L_OUT_KIND,
    L_QUERY, L_QUERY_STRIDE, L_SCRATCH, L_SCRATCH_STRIDE,
) = offsets("latent_store")  # fmt: skip


@jit
def store_latent(op, kv, position, slot):
    """Norm a token's latent, turn its key's last columns, and store both: key (latent, turned), value (latent)."""
    rank, dim, kind = load_i64(op + L_RANK), load_i64(op + L_ROPE_DIM), load_i64(op + L_KV)
    norm_head(kv, rank, load_i64(op + L_NORM), load_f32(op + L_EPS))
    rotate(kv + 4 * rank, load_i64(op + L_ROPE) + 4 * dim * position, dim, load_i64(op + L_INTERLEAVED) != 0)
    capacity = load_i64(op + L_CAPACITY)
    place, row = position % capacity, slot * capacity
    size = 4 if kind == KV_F32 else 2 if kind == KV_F16 else 1
    at = (row + place - place % KEY_LANES) * (rank + dim) + place % KEY_LANES
    scale = 4 * (row + place)
    store_vector(
        kind, kv, rank + dim, load_i64(op + L_K_CACHE) + size * at, KEY_LANES, load_i64(op + L_K_SCALE) + scale
    )
    values = load_i64(op + L_V_CACHE) + size * (row + place) * ((rank + 15) // 16 * 16)
    store_vector(kind, kv, rank, values, 1, load_i64(op + L_V_SCALE) + scale)


@kernel
def latent_store(op, step, chunk, thread):
    """Latents of a tile of tokens into the cache; turned parts of queries, and tiles of the others."""
    heads, nope, rank, dim = (
        load_i64(op + L_HEADS),
        load_i64(op + L_NOPE),
        load_i64(op + L_RANK),
        load_i64(op + L_ROPE_DIM),
    )
    groups, x = load_i64(op + L_GROUPS), load_i64(op + L_SCRATCH) + thread * load_i64(op + L_SCRATCH_STRIDE)
    for i in range(32 * groups):
        store_f32(x + 4 * i, f32(0.0))
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        position = load_i64(load_i64(op + L_POS) + 8 * t)
        kv = load_i64(op + L_QKV) + t * load_i64(op + L_QKV_STRIDE) + load_i64(op + L_KV_AT)
        store_latent(op, kv, position, load_i64(load_i64(op + L_SLOT) + 8 * t))
        table = load_i64(op + L_ROPE) + 4 * dim * position
        for h in range(heads):
            q = load_i64(op + L_Q) + t * load_i64(op + L_Q_STRIDE) + 4 * h * (nope + dim)
            rotate(q + 4 * nope, table, dim, load_i64(op + L_INTERLEAVED) != 0)
            turned = load_i64(op + L_QUERY) + t * load_i64(op + L_QUERY_STRIDE) + 4 * (h * (rank + dim) + rank)
            for i in range(0, 4 * dim, 4):
                store_f32(turned + i, load_f32(q + 4 * nope + i))
            for i in range(0, 4 * nope, 4):
                store_f32(x + i, load_f32(q + i))
            for g in range(groups):
                low, high = load_f32x16(x + 128 * g), load_f32x16(x + 128 * g + 64)
                store_group(
                    load_i64(op + L_OUT), load_i64(op + L_OUT_KIND), heads * groups, h * groups + g, t, low, high
                )
