"""What happens to a token between matrices: embedding, norms, rotation, and storing keys and values."""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.conversions import load_bf16, store_bf16_above, store_f16
from lapinfer.kernels.operands import KEY_LANES, KV_F16, KV_F32, KV_GROUP, LAYER, LOST, NONE, TILE
from lapinfer.kernels.problem import note_range
from lapinfer.kernels.products import ELEMENTS
from lapinfer.kernels.simd import (
    fma,
    iota,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    reduce_sum,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i8,
    where_less,
)
from lapinfer.kernels.stamp import stamped
from lapinfer.kernels.tiles import store_group
from lapinfer.quant import BAND

f32 = np.float32


# ---- embedding ----


@stamped(ELEMENTS)
def embed(W, o, step, chunk, thread):
    """x[t] = embed[token[t]] · scale (+ positions[pos[t]]) for a tile of tokens."""
    groups, row_blocks, positions, scale = o.groups, o.row_blocks, o.positions, o.scale
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        token = load_i64(o.token + 8 * t)
        place = token // 16 % BAND
        band = token // 16 - place
        width = min(BAND, row_blocks - band)
        head = o.weights + band * (W.head_bytes + groups * W.block_bytes)
        block = head + width * W.head_bytes + place * W.block_bytes
        head += place * W.head_bytes
        out = o.out + t * o.out_stride
        learned = positions + load_i64(o.pos + 8 * t) * groups * 128
        for g in range(groups):
            for column in range(32):
                value = W.element(head, block + g * width * W.block_bytes, token % 16, column) * scale
                if positions != 0:
                    value += load_f32(learned + 128 * g + 4 * column)
                store_f32(out + 128 * g + 4 * column, value)


# ---- norms ----


SMALL = f32(2.0**-64)
"""What numbers are multiplied with whose squares would be beyond float32; transformers has infinities there."""


@jit
def factor_of_squares(squares, small, width, eps):
    """1 / √(mean of squares + eps). small: the sum of the squares of numbers times SMALL, for sums that overflow."""
    if squares < f32(np.inf):
        return f32(1.0) / np.sqrt(squares / f32(width) + eps)
    return SMALL / np.sqrt(small / f32(width))


@jit
def centred_squares(x, width, mean, scale):
    """Σ ((x − mean) · scale)² of float32 x[width]."""
    total = splat_f32(f32(0.0))
    for i in range(0, width, 16):
        inside = iota() + splat_f32(f32(i))
        centred = (load_f32x16(x + 4 * i) - splat_f32(mean)) * splat_f32(scale)
        centred = where_less(inside, splat_f32(f32(width)), centred, splat_f32(f32(0.0)))
        total = fma(centred, centred, total)
    return reduce_sum(total)


@jit
def statistics(kind, x, width, eps):
    """What is subtracted, and what the difference is multiplied with, to norm float32 x[width] at an address."""
    mean = f32(0.0)
    if kind == NONE:
        return f32(0.0), f32(1.0)
    if kind == LAYER:
        total = splat_f32(f32(0.0))
        for i in range(0, width, 16):
            total = total + load_f32x16(x + 4 * i)  # columns after the width are zero
        mean = reduce_sum(total) / f32(width)
    squares = centred_squares(x, width, mean, f32(1.0))
    small = f32(0.0) if squares < f32(np.inf) else centred_squares(x, width, mean, SMALL)
    return mean, factor_of_squares(squares, small, width, eps)


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


@kernel
def norm(o, step, chunk, thread):
    """A tile of tokens of x, normed, as activation tiles."""
    kind, rows, groups = o.norm, o.rows, o.groups
    weight, bias = o.weight, o.bias
    tokens = step[o.tokens]
    for t in range(chunk * TILE, min(chunk * TILE + TILE, tokens)):
        row = t if rows == 0 else load_i64(rows + 8 * t)
        x = o.x + row * o.x_stride
        mean, factor = statistics(kind, x, o.width, o.eps)
        for g in range(groups):
            start = 128 * g
            low = normed(kind, x + start, mean, factor, weight + start, bias if bias == 0 else bias + start)
            start += 64
            high = normed(kind, x + start, mean, factor, weight + start, bias if bias == 0 else bias + start)
            if o.out != 0:
                store_group(o.out, o.out_kind, groups, g, t, low, high)
            if o.exact != 0:
                exact = o.exact + 128 * (t * groups + g)
                store_f32x16(exact, low)
                store_f32x16(exact + 64, high)


@kernel
def add_norm(o, step, chunk, thread):
    """x[t] += scale · norm(y[t]) for a tile of tokens."""
    kind, weight, bias = o.norm, o.weight, o.bias
    width, scale = o.width, splat_f32(o.scale)
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        y = o.y + t * o.y_stride
        x = o.x + t * o.x_stride
        mean, factor = statistics(kind, y, width, o.eps)
        for start in range(0, 4 * width, 64):
            value = normed(kind, y + start, mean, factor, weight + start, bias if bias == 0 else bias + start)
            store_f32x16(x + start, fma(value, scale, load_f32x16(x + start)))


# ---- heads: norm, rotation, cache ----


@jit
def squares_of_head(x, width, scale):
    """Σ (x · scale)² of float32 x[width]; any width."""
    total = splat_f32(f32(0.0))
    in_vectors = width // 16 * 16
    for i in range(0, in_vectors, 16):
        value = load_f32x16(x + 4 * i) * splat_f32(scale)
        total = fma(value, value, total)
    squares = reduce_sum(total)
    for i in range(in_vectors, width):
        squares += (load_f32(x + 4 * i) * scale) * (load_f32(x + 4 * i) * scale)
    return squares


@jit
def centre_head(x, width):
    """Subtract the mean of float32 x[width] in place; any width."""
    total = splat_f32(f32(0.0))
    in_vectors = width // 16 * 16
    for i in range(0, in_vectors, 16):
        total = total + load_f32x16(x + 4 * i)
    mean = reduce_sum(total)
    for i in range(in_vectors, width):
        mean += load_f32(x + 4 * i)
    mean = mean / f32(width)
    for i in range(0, in_vectors, 16):
        store_f32x16(x + 4 * i, load_f32x16(x + 4 * i) - splat_f32(mean))
    for i in range(in_vectors, width):
        store_f32(x + 4 * i, load_f32(x + 4 * i) - mean)


@jit
def norm_head(x, width, weight, eps):
    """RMS norm of float32 x[width] in place; any width."""
    in_vectors = width // 16 * 16
    squares = squares_of_head(x, width, f32(1.0))
    small = f32(0.0) if squares < f32(np.inf) else squares_of_head(x, width, SMALL)
    factor = factor_of_squares(squares, small, width, eps)
    for i in range(0, in_vectors, 16):
        store_f32x16(x + 4 * i, load_f32x16(x + 4 * i) * splat_f32(factor) * load_f32x16(weight + 4 * i))
    for i in range(in_vectors, width):
        store_f32(x + 4 * i, load_f32(x + 4 * i) * factor * load_f32(weight + 4 * i))


@jit
def norm_of_kind(kind, x, width, weight, bias, eps):
    """RMS or layer norm of float32 x[width] in place; bias: an address, or 0: none."""
    if kind == LAYER:
        centre_head(x, width)
    norm_head(x, width, weight, eps)
    if bias != 0:
        for i in range(width):
            store_f32(x + 4 * i, load_f32(x + 4 * i) + load_f32(bias + 4 * i))


@jit
def norm_heads(o, x, heads, weight, bias):
    """Norm float32 x[heads · k_dim] in place, all heads as one or each by itself."""
    kind, width, eps = o.norm, o.k_dim, o.eps
    if o.norm_full != 0:
        norm_of_kind(kind, x, heads * width, weight, bias, eps)
        return
    step = 4 * width if o.norm_each != 0 else 0
    for h in range(heads):
        own = bias if bias == 0 else bias + h * step
        norm_of_kind(kind, x + 4 * h * width, width, weight + h * step, own, eps)


@jit
def norm_queries_and_keys(o, q, k):
    """Where the layer has such norms."""
    if o.q_norm != 0:
        norm_heads(o, q, o.heads, o.q_norm, o.q_norm_bias)
        norm_heads(o, k, o.kv_heads, o.k_norm, o.k_norm_bias)


@jit
def rotate(x, table, dim, interleaved):
    """Turn the pairs of x[dim] in place; table: cos [dim/2], then sin [dim/2]."""
    half = dim // 2
    sines = table + 4 * half
    in_vectors = 0 if interleaved else half // 16 * 16
    for i in range(0, in_vectors, 16):
        a, b = load_f32x16(x + 4 * i), load_f32x16(x + 4 * (half + i))
        c, s = load_f32x16(table + 4 * i), load_f32x16(sines + 4 * i)
        store_f32x16(x + 4 * i, a * c - b * s)
        store_f32x16(x + 4 * (half + i), b * c + a * s)
    for i in range(in_vectors, half):
        first = x + 8 * i if interleaved else x + 4 * i
        second = first + 4 if interleaved else first + 4 * half
        a, b = load_f32(first), load_f32(second)
        c, s = load_f32(table + 4 * i), load_f32(sines + 4 * i)
        store_f32(first, a * c - b * s)
        store_f32(second, b * c + a * s)


F16_STOP = 0x477FF000  # 65520 as float32: from here on, float16 is infinite
F16_LEAST = 0x36800000  # 2^-18: smaller numbers keep fewer than 7 of float16's 11 bits
MANY = 7  # numbers that are lost beside a larger one
F32_STOP = 0x7F800000  # infinity; NaN is above


@jit
def note_stored(step, layer, kind, keys, values):
    """Say so where what was stored of a token is not in the range of its cache."""
    if kind == KV_F16:
        note_range(step, layer, keys, values, F16_LEAST, F16_STOP)
    else:
        note_range(step, layer, keys, values, 0, F32_STOP)


@jit
def largest_of_vector(x, first, last):
    """The largest magnitude of float32 first … last of x, as its bits: without signs, floats are ordered as these."""
    largest = 0
    for i in range(first, last):
        largest = max(largest, load_i32(x + 4 * i) & 0x7FFFFFFF)
    return largest


@jit
def store_vector(kind, x, width, out, stride, scale, scale_stride):
    """Write float32 x[width] to the cache, elements `stride` elements apart; returns the largest magnitude, as bits.

    q8: a scale for each KV_GROUP of them, `scale_stride` apart, is the next bfloat16 above largest / 127: it has the
    range of float32, and no code is beyond 127. LOST is added where all numbers of a group but one become zero.
    """
    largest = largest_of_vector(x, 0, width)
    if kind == KV_F32:
        for i in range(width):
            store_f32(out + 4 * stride * i, load_f32(x + 4 * i))
        return largest
    if kind == KV_F16:
        for i in range(width):
            store_f16(out + 2 * stride * i, load_f32(x + 4 * i))
        return largest
    for first in range(0, width, KV_GROUP):
        last = min(first + KV_GROUP, width)
        top = f32(0.0)
        for i in range(first, last):
            top = max(top, abs(load_f32(x + 4 * i)))
        store_bf16_above(scale, top / f32(127.0))
        step = load_bf16(scale)
        inverse = f32(1.0) / step if step > f32(1e-37) else f32(0.0)
        kept = lost = 0
        for i in range(first, last):
            value = load_f32(x + 4 * i)
            code = np.rint(value * inverse)
            kept += code != f32(0.0)
            lost += (code == f32(0.0)) & (value != f32(0.0))
            store_i8(out + stride * i, code)
        if kept == 1 and lost >= MANY and largest < LOST:
            largest += LOST
        scale += 2 * scale_stride
    return largest


@jit
def heads_of_one(o, step, qkv, position, slot):
    """Norm, rotation and storing for one token's heads."""
    heads, kv_heads, k_dim = o.heads, o.kv_heads, o.k_dim
    v_dim, kind, capacity = o.v_dim, o.kv, o.capacity
    v_lanes = (v_dim + 15) // 16 * 16
    keys = qkv + 4 * heads * k_dim
    values = keys + 4 * kv_heads * k_dim
    if o.norm_after == 0:
        norm_queries_and_keys(o, qkv, keys)
    limit = o.clip
    if limit > f32(0.0):
        for i in range((heads + kv_heads) * k_dim + kv_heads * v_dim):
            store_f32(qkv + 4 * i, min(max(load_f32(qkv + 4 * i), -limit), limit))
    rope, dim = o.rope, o.rope_dim
    if rope != 0:
        for h in range(heads + kv_heads):
            rotate(qkv + 4 * h * k_dim, rope + 4 * dim * position, dim, o.interleaved != 0)
    if o.norm_after != 0:
        norm_queries_and_keys(o, qkv, keys)
    if o.growth != 0:
        factor = load_f32(o.growth + 4 * position)
        for i in range(heads * k_dim):
            store_f32(qkv + 4 * i, load_f32(qkv + 4 * i) * factor)
    place = position % capacity
    size = 4 if kind == KV_F32 else 2 if kind == KV_F16 else 1
    k_groups, v_groups = (k_dim + KV_GROUP - 1) // KV_GROUP, (v_dim + KV_GROUP - 1) // KV_GROUP
    largest_key = largest_value = 0
    for h in range(kv_heads):
        row = (slot * kv_heads + h) * capacity  # keys and values of this head before it
        k_out = o.k_cache + size * ((row + place - place % KEY_LANES) * k_dim + place % KEY_LANES)
        v_out = o.v_cache + size * (row + place) * v_lanes
        k_scale, v_scale = o.k_scale + 2 * (row * k_groups + place), o.v_scale + 2 * (row * v_groups + place)
        key, value = keys + 4 * h * k_dim, values + 4 * h * v_dim
        largest_key = max(largest_key, store_vector(kind, key, k_dim, k_out, KEY_LANES, k_scale, capacity))
        largest_value = max(largest_value, store_vector(kind, value, v_dim, v_out, 1, v_scale, capacity))
    note_stored(step, o.of_layer, kind, largest_key, largest_value)


@kernel
def rope_store(o, step, chunk, thread):
    """Norm and rotate the heads of a tile of tokens, and store their keys and values."""
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        position = load_i64(o.pos + 8 * t)
        slot = load_i64(o.slot + 8 * t)
        heads_of_one(o, step, o.qkv + t * o.qkv_stride, position, slot)


@jit
def store_latent(o, step, kv, position, slot):
    """Norm a token's latent, turn its key's last columns, and store both: key (latent, turned), value (latent)."""
    rank, dim, kind = o.rank, o.rope_dim, o.kv
    norm_head(kv, rank, o.norm, o.eps)
    rotate(kv + 4 * rank, o.rope + 4 * dim * position, dim, o.interleaved != 0)
    capacity = o.capacity
    place, row = position % capacity, slot * capacity
    size = 4 if kind == KV_F32 else 2 if kind == KV_F16 else 1
    key = (row + place - place % KEY_LANES) * (rank + dim) + place % KEY_LANES
    k_groups, v_groups = (rank + dim + KV_GROUP - 1) // KV_GROUP, (rank + KV_GROUP - 1) // KV_GROUP
    k_scale, v_scale = o.k_scale + 2 * (row * k_groups + place), o.v_scale + 2 * (row * v_groups + place)
    largest_key = store_vector(kind, kv, rank + dim, o.k_cache + size * key, KEY_LANES, k_scale, capacity)
    values = o.v_cache + size * (row + place) * ((rank + 15) // 16 * 16)
    largest_value = store_vector(kind, kv, rank, values, 1, v_scale, capacity)
    note_stored(step, o.of_layer, kind, largest_key, largest_value)


@kernel
def latent_store(o, step, chunk, thread):
    """Latents of a tile of tokens into the cache; turned parts of queries, and tiles of the others."""
    heads, nope, rank, dim = o.heads, o.nope, o.rank, o.rope_dim
    groups, x = o.groups, o.scratch + thread * o.scratch_stride
    for i in range(32 * groups):
        store_f32(x + 4 * i, f32(0.0))
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        position = load_i64(o.pos + 8 * t)
        kv = o.qkv + t * o.qkv_stride + o.kv_at
        store_latent(o, step, kv, position, load_i64(o.slot + 8 * t))
        table = o.rope + 4 * dim * position
        for h in range(heads):
            q = o.q + t * o.q_stride + 4 * h * (nope + dim)
            rotate(q + 4 * nope, table, dim, o.interleaved != 0)
            turned = o.query + t * o.query_stride + 4 * (h * (rank + dim) + rank)
            for i in range(0, 4 * dim, 4):
                store_f32(turned + i, load_f32(q + 4 * nope + i))
            for i in range(0, 4 * nope, 4):
                store_f32(x + i, load_f32(q + i))
            for g in range(groups):
                low, high = load_f32x16(x + 128 * g), load_f32x16(x + 128 * g + 64)
                store_group(o.out, o.out_kind, heads * groups, h * groups + g, t, low, high)
