"""Attention with online softmax over fixed blocks of keys.

For every block of KEY_BLOCK keys a row (a query head of a token) gets a partial: the maximum m of its scores,
l = Σ e^(s − m), and Σ e^(s − m) · v. Partials are folded in the order of the blocks, by the same arithmetic
whether one thread folds them at once (prompts) or `merge` does it later (decode, where blocks are shared out).
A block that a row does not see is the neutral element of the fold, to the bit. (Online softmax: Milakov and
Gimelshein, arXiv 1805.02867; splitting over keys: Dao et al., Flash-Decoding.)
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.conversions import load_bf16x16, load_f16x16
from lapinfer.kernels.edges import inside
from lapinfer.kernels.operands import KEY_BLOCK, KEY_LANES, KV_GROUP, PARTIAL_EXTRA, TILE
from lapinfer.kernels.register_tiles import (
    tile_add_times,
    tile_fma,
    tile_fma_by_halves,
    tile_of_4,
    tile_of_6,
    tile_of_8,
    tile_of_12,
    tile_of_16,
    tile_store,
    tile_store_by_2,
    tile_store_by_3,
    tile_store_by_4,
)
from lapinfer.kernels.simd import (
    ask,
    fma,
    iota,
    lane,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i64,
    reduce_larger,
    reduce_sum,
    splat_f32,
    store_f32,
    store_f32x16,
    where_less,
)
from lapinfer.kernels.stamp import Constant, stamped
from lapinfer.kernels.tiles import store_group
from lapinfer.kernels.vecmath import cap, exp, sigmoid

f32 = np.float32
ROWS = 4  # query rows in a register tile
LOWEST = f32(-1e30)  # the maximum of a row that has seen nothing; finite, so that differences stay numbers
HIDDEN = f32(-np.inf)  # the score of a masked key


KV = (
    Constant("kv", "f32", load=load_f32x16, bytes=4),
    Constant("kv", "f16", load=load_f16x16, bytes=2),
    Constant("kv", "q8", load=load_i8x16, bytes=1),
)
"""How each of KV_KINDS is read: 16 numbers as float32, and the bytes of one. KV_GROUP of those of q8 have a scale."""


@jit
def fold(into, m, l, values, v_lanes):  # noqa: E741
    """Merge a partial (m, l, values at an address) into the one at `into`."""
    old = load_f32(into + 4 * v_lanes)
    highest = max(old, m)
    keep = lane(exp(splat_f32(old - highest)), 0)
    take = lane(exp(splat_f32(m - highest)), 0)
    for i in range(0, 4 * v_lanes, 64):
        kept = load_f32x16(into + i) * splat_f32(keep)
        store_f32x16(into + i, fma(load_f32x16(values + i), splat_f32(take), kept))
    store_f32(into + 4 * v_lanes, highest)
    store_f32(into + 4 * v_lanes + 4, load_f32(into + 4 * v_lanes + 4) * keep + l * take)


@jit
def keys_times_rows(kv, tile, q, k, first, last, ahead, to_values):
    """tile += numbers first … last of KEY_LANES keys, which begin at k, times those of a register tile of rows.

    ahead: bytes to the next keys, which memory is asked for meanwhile, as for the block's values; 0: it is not.
    """
    for d in range(first, last):
        if ahead != 0:
            ask(k + ahead)
            ask(k + to_values)
        tile = tile_fma(tile, (kv.load(k), kv.load(k + 16 * kv.bytes)), q + 4 * ROWS * d, 4)
        k += KEY_LANES * kv.bytes
    return tile


@jit
def dots(kv, zero, o, q, k, scales, ahead, to_values):
    """q · k of a register tile of rows (zero: an empty one) and KEY_LANES keys; a group of q8 is scaled as a whole."""
    k_dim, total = o.k_dim, zero()
    if kv.bytes != 1:
        return keys_times_rows(kv, total, q, k, 0, k_dim, ahead, to_values)
    for first in range(0, k_dim, KV_GROUP):
        last = min(first + KV_GROUP, k_dim)
        part = keys_times_rows(kv, zero(), q, k + KEY_LANES * first, first, last, ahead, to_values)
        total = tile_add_times(total, part, (load_bf16x16(scales), load_bf16x16(scales + 32)))
        scales += 2 * o.capacity
    return total


@jit
def scores_of_block(kv, o, q, keys, values, scales, first, last, scores, ahead, rows):
    """q · k of 1 … ROWS rows against keys first … last (multiples of KEY_LANES) of a block, into scores.

    ahead: ask memory for the next keys and the block's values meanwhile (the first rows that need them do).
    Fewer rows than a register tile has are common in decode: as many as heads share a key; 1 is computed as 2.
    """
    size = KEY_LANES * o.k_dim * kv.bytes
    for key in range(first, last, KEY_LANES):
        k = keys + key // KEY_LANES * size
        next_keys = size if ahead else 0
        if rows <= 2:
            two = dots(kv, tile_of_4, o, q, k, scales + 2 * key, next_keys, values - keys)
            tile_store_by_2(two, scores + 4 * key, 4 * KEY_BLOCK)
        elif rows == 3:
            three = dots(kv, tile_of_6, o, q, k, scales + 2 * key, next_keys, values - keys)
            tile_store_by_3(three, scores + 4 * key, 4 * KEY_BLOCK)
        else:
            four = dots(kv, tile_of_8, o, q, k, scales + 2 * key, next_keys, values - keys)
            tile_store_by_4(four, scores + 4 * key, 4 * KEY_BLOCK)
    softcap = o.softcap
    if softcap != f32(0.0):
        for key in range(first, last, 16):
            for r in range(rows):
                score = scores + 4 * (r * KEY_BLOCK + key)
                store_f32x16(score, cap(load_f32x16(score), softcap))


@jit
def softmax_of_row(scores, first_key, first, last, lowest, highest):
    """Mask scores outside keys lowest … highest, and turn them into e^(s − m) in place -> m, l."""
    low, high = splat_f32(f32(lowest - first_key) - f32(0.5)), splat_f32(f32(highest - first_key) + f32(0.5))
    best = splat_f32(LOWEST)
    for key in range(first, last, 16):
        index = iota() + splat_f32(f32(key))
        value = load_f32x16(scores + 4 * key)
        value = where_less(index, high, value, splat_f32(HIDDEN))
        value = where_less(low, index, value, splat_f32(HIDDEN))
        store_f32x16(scores + 4 * key, value)
        best = where_less(best, value, value, best)
    m = reduce_larger(best)
    total = splat_f32(f32(0.0))
    for key in range(first, last, 16):
        p = exp(load_f32x16(scores + 4 * key) - splat_f32(m))
        total = total + p
        store_f32x16(scores + 4 * key, p)
    return m, reduce_sum(total)


@jit
def weighed(kv, scores, scales, first, last, rows, out):
    """Where the factors of a group's values are: the scores, which a q8 cache has multiplied with its scales first."""
    if kv.bytes != 1:
        return scores
    for key in range(first, last, 16):
        scale = load_bf16x16(scales + 2 * key)
        for r in range(rows):
            store_f32x16(out + 4 * (r * KEY_BLOCK + key), load_f32x16(scores + 4 * (r * KEY_BLOCK + key)) * scale)
    return out


@jit
def four_vectors(kv, address):
    """64 neighbouring numbers."""
    step = 16 * kv.bytes
    return kv.load(address), kv.load(address + step), kv.load(address + 2 * step), kv.load(address + 3 * step)


@jit
def values_of_block(kv, scores, values, scales, step, v_lanes, first, stop, last, out, rows):
    """Σ p · v of 1 … ROWS rows over keys first … stop of a block -> out [ROWS, v_lanes].

    scales: of the first group of q8 values, `step` bytes before those of the next one; last: stop, rounded up to
    whole KEY_LANES. After the scores is room for two more such tables.
    """
    room = scores + 4 * ROWS * KEY_BLOCK
    by_four = v_lanes // 64 * 64
    for i in range(0, by_four, 64):  # four vectors of values share the broadcast weights
        v = values + (first * v_lanes + i) * kv.bytes
        group = scales + i // KV_GROUP * step
        near = weighed(kv, scores, group, first, last, rows, room)
        far = weighed(kv, scores, group + step, first, last, rows, room + 4 * ROWS * KEY_BLOCK)
        if rows <= 2:
            two = tile_of_8()
            for key in range(first, stop):
                two = tile_fma_by_halves(two, four_vectors(kv, v), near + 4 * key, far + 4 * key, 4 * KEY_BLOCK)
                v += v_lanes * kv.bytes
            tile_store_by_2(two, out + 4 * i, 4 * v_lanes)
        elif rows == 3:
            three = tile_of_12()
            for key in range(first, stop):
                three = tile_fma_by_halves(three, four_vectors(kv, v), near + 4 * key, far + 4 * key, 4 * KEY_BLOCK)
                v += v_lanes * kv.bytes
            tile_store_by_3(three, out + 4 * i, 4 * v_lanes)
        else:
            four = tile_of_16()
            for key in range(first, stop):
                four = tile_fma_by_halves(four, four_vectors(kv, v), near + 4 * key, far + 4 * key, 4 * KEY_BLOCK)
                v += v_lanes * kv.bytes
            tile_store_by_4(four, out + 4 * i, 4 * v_lanes)
    for i in range(by_four, v_lanes, 16):
        one = tile_of_4()
        v = values + (first * v_lanes + i) * kv.bytes
        near = weighed(kv, scores, scales + i // KV_GROUP * step, first, last, rows, room)
        for key in range(first, stop):
            one = tile_fma(one, (kv.load(v),), near + 4 * key, 4 * KEY_BLOCK)
            v += v_lanes * kv.bytes
        tile_store(one, out + 4 * i, 4 * v_lanes)


@jit
def gather_queries(o, first_token, head, group, rows, q):
    """Scaled queries of `rows` rows as [tiles of ROWS, k_dim, ROWS]; row r is token r // group, head r % group."""
    k_dim, scale = o.k_dim, o.scale
    for r in range(rows):
        x = o.qkv + (first_token + r // group) * o.qkv_stride
        x += 4 * (head * group + r % group) * k_dim
        out = q + 4 * (r // ROWS * ROWS * k_dim + r % ROWS)
        for d in range(k_dim):
            store_f32(out + 4 * ROWS * d, load_f32(x + 4 * d) * scale)


@stamped(KV)
def attention(kv, o, step, chunk, thread):
    """One item of the step's table for one key/value head."""
    kv_heads = o.kv_heads
    item = o.items[chunk // kv_heads]
    head = chunk % kv_heads
    heads, k_dim, v_dim = o.heads, o.k_dim, o.v_dim
    v_lanes = (v_dim + 15) // 16 * 16
    group = heads // kv_heads
    first_token, tokens, slot, split = item.first_token, item.tokens, item.slot, item.split
    rows = tokens * group
    q = o.scratch + thread * o.scratch_stride
    scores = q + 4 * (rows + ROWS) * k_dim
    weighted = scores + 12 * ROWS * KEY_BLOCK
    gather_queries(o, first_token, head, group, rows, q)

    pos, window, capacity = o.pos, o.window, o.capacity
    first_position = load_i64(pos + 8 * first_token)
    last_position = load_i64(pos + 8 * (first_token + tokens - 1))
    first_block = max(item.first_block, max(first_position - window + 1, 0) // KEY_BLOCK)
    last_block = min(item.last_block, last_position // KEY_BLOCK)
    before = (slot * kv_heads + head) * capacity
    k_groups, v_groups = (k_dim + KV_GROUP - 1) // KV_GROUP, (v_dim + KV_GROUP - 1) // KV_GROUP
    row_bytes = 4 * (v_lanes + PARTIAL_EXTRA)
    for block in range(first_block, last_block + 1):
        first_key = block * KEY_BLOCK
        place = before + first_key % capacity
        keys = o.k_cache + place * k_dim * kv.bytes
        values = o.v_cache + place * v_lanes * kv.bytes
        k_scales = o.k_scale + 2 * (before * k_groups + first_key % capacity)
        v_scales = o.v_scale + 2 * (before * v_groups + first_key % capacity)
        for row in range(0, rows, ROWS):
            used = min(ROWS, rows - row)
            top = first_token + (row + used - 1) // group
            oldest = load_i64(pos + 8 * (first_token + row // group)) - window + 1
            first = max(oldest - first_key, 0) // KEY_LANES * KEY_LANES
            stop = min(load_i64(pos + 8 * top) - first_key + 1, KEY_BLOCK)  # 0 · what is stored there might be NaN
            last = (stop + KEY_LANES - 1) // KEY_LANES * KEY_LANES
            if first < last:
                scores_of_block(kv, o, q + 4 * row * k_dim, keys, values, k_scales, first, last, scores, row == 0, used)
            for r in range(row, row + used):
                highest = load_i64(pos + 8 * (first_token + r // group))
                m, total = softmax_of_row(
                    scores + 4 * (r - row) * KEY_BLOCK, first_key, first, last, highest - window + 1, highest
                )
                store_f32(weighted + 4 * (ROWS * v_lanes + 2 * (r - row)), m)
                store_f32(weighted + 4 * (ROWS * v_lanes + 2 * (r - row) + 1), total)
            values_of_block(kv, scores, values, v_scales, 2 * capacity, v_lanes, first, stop, last, weighted, used)
            for r in range(row, row + used):
                m = load_f32(weighted + 4 * (ROWS * v_lanes + 2 * (r - row)))
                total = load_f32(weighted + 4 * (ROWS * v_lanes + 2 * (r - row) + 1))
                value = weighted + 4 * (r - row) * v_lanes
                token = first_token + r // group
                part = o.part_table[token].first + (block if split != 0 else 0)
                into = o.partial + (part * heads + head * group + r % group) * row_bytes
                if split != 0 or block == first_block:
                    for i in range(0, 4 * v_lanes, 64):
                        store_f32x16(into + i, load_f32x16(value + i))
                    store_f32(into + 4 * v_lanes, m)
                    store_f32(into + 4 * v_lanes + 4, total)
                else:
                    fold(into, m, total, value, v_lanes)


@kernel
def merge(o, step, chunk, thread):
    """Fold the partials of a tile of tokens, divide by their sums, and write activation tiles."""
    heads, v_dim, window = o.heads, o.v_dim, o.window
    groups, v_lanes, sinks = o.groups, (v_dim + 15) // 16 * 16, o.sinks
    row_bytes = 4 * (v_lanes + PARTIAL_EXTRA)
    x = o.scratch + thread * o.scratch_stride
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        position = load_i64(o.pos + 8 * t)
        part, split = o.part_table[t].first, o.part_table[t].split
        first = max(position - window + 1, 0) // KEY_BLOCK if split != 0 else 0
        last = position // KEY_BLOCK if split != 0 else 0
        for h in range(heads):
            total = o.partial + ((part + first) * heads + h) * row_bytes
            for block in range(first + 1, last + 1):
                other = o.partial + ((part + block) * heads + h) * row_bytes
                m, l = load_f32(other + 4 * v_lanes), load_f32(other + 4 * v_lanes + 4)  # noqa: E741
                fold(total, m, l, other, v_lanes)
            l = load_f32(total + 4 * v_lanes + 4)  # noqa: E741
            factor = splat_f32(f32(1.0) / l)
            if sinks != 0:
                m, sink = load_f32(total + 4 * v_lanes), load_f32(sinks + 4 * h)
                highest = max(m, sink)
                keep = lane(exp(splat_f32(m - highest)), 0)
                factor = splat_f32(keep / (l * keep + lane(exp(splat_f32(sink - highest)), 0)))
            for i in range(0, 4 * v_lanes, 64):  # lanes after v_dim are overwritten by the next head
                store_f32x16(x + 4 * h * v_dim + i, load_f32x16(total + i) * factor)
        for i in range(heads * v_dim, 32 * groups):
            store_f32(x + 4 * i, f32(0.0))
        for g in range(groups):
            low, high = load_f32x16(x + 128 * g), load_f32x16(x + 128 * g + 64)
            if o.gate != 0:
                gate = o.gate + t * o.gate_stride + 128 * g
                low = inside(low * sigmoid(load_f32x16(gate)), 32 * g, heads * v_dim)
                high = inside(high * sigmoid(load_f32x16(gate + 64)), 32 * g + 16, heads * v_dim)
            store_group(o.out, o.out_kind, groups, g, t, low, high)
