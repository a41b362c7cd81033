"""A step's tokens by expert: all (token, expert) pairs as tiles of one expert each, and their activations side by side.

So that an expert's weights are read once for all of its tokens, however many these are: nothing is padded to a
capacity, nothing dropped.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import ACT_F32, ACT_Q8, F32_TILE_GROUP, Q8_TILE_GROUP, Q16_TILE_GROUP, TILE
from lapinfer.kernels.simd import lane, load_f32, load_i64, splat_f32, store_f32, store_i64
from lapinfer.kernels.system import is_last
from lapinfer.kernels.vecmath import exp

f32 = np.float32


@jit
def exp_of(x):
    """e^x of one number."""
    return lane(exp(splat_f32(x)), 0)


@jit
def last_of_step(sort, step):
    """Whether this chunk, a tile of tokens, is the last of the step to come to its end."""
    return is_last(sort.finished, step.tiles)


@jit
def list_active(sort, tokens):
    """Count the tokens of each routed expert, and list those that have any, by number; returns how many there are."""
    counts, active, chosen = sort.counts, sort.active, sort.chosen
    stride, n = sort.chosen_stride, 0
    for t in range(tokens):
        for i in range(sort.choices):
            e = load_i64(chosen + 8 * (t * stride + i))
            count = load_i64(counts + 8 * e)
            if count == 0:
                active[n].expert = e
                n += 1
            store_i64(counts + 8 * e, count + 1)
    gap = n // 2
    while gap > 0:  # Shell's sort: there may be thousands of experts, of which a step has few
        for i in range(gap, n):
            e, j = active[i].expert, i
            while j >= gap and active[j - gap].expert > e:
                active[j].expert = active[j - gap].expert
                j -= gap
            active[j].expert = e
        gap //= 2
    return n


@jit
def add_tiles(sort, expert, tokens, tile, lone):
    """Enter an expert's tiles into the table, and where their activations are; returns the next free tile.

    Those of routed experts are in `gathered`, tile by tile; a lone token's, and those of shared experts, are where
    the norm has left them.
    """
    in_place = lone or expert >= sort.routed
    x = sort.x if in_place else sort.gathered + tile * sort.tile_bytes
    for first in range(0, tokens, TILE):
        entry = sort.tiles[tile]
        entry.expert = expert
        entry.tokens = min(TILE, tokens - first)
        entry.x = x
        x += sort.tile_bytes
        tile += 1
    return tile


@jit
def give_to_all(sort, tokens, place):
    """A shared expert's rows and weights, from `place` on: all tokens."""
    gate = sort.shared_gate
    for t in range(tokens):
        weight = sort.shared_weight
        if gate != 0:
            weight = f32(1.0) / (f32(1.0) + exp_of(-load_f32(gate + t * sort.gate_stride)))
        store_i64(sort.rows + 8 * (place + t), t)
        store_f32(sort.row_weights + 4 * (place + t), weight)


@jit
def sort_by_expert(sort, step):
    """The step's tokens as tiles of one expert each, in the order of the experts; shared experts take all tokens.

    Returns how many routed experts are active. `counts` are zero before and after.
    """
    tokens, experts, active = step.tokens, sort.routed, sort.active
    counts, chosen = sort.counts, sort.chosen
    routed, tile, routed_tiles = list_active(sort, tokens), 0, 0
    everything = routed + sort.shared
    for i in range(everything):
        entry = active[i]
        if i >= routed:
            entry.expert = experts + i - routed
            give_to_all(sort, tokens, TILE * tile)
        e, first = entry.expert, tile
        tile = add_tiles(sort, e, load_i64(counts + 8 * e) if i < routed else tokens, tile, tokens == 1)
        entry.first_tile = first
        entry.stop_tile = tile
        if i < routed:
            routed_tiles = tile
            store_i64(counts + 8 * e, TILE * first)  # for now: where its next token goes
    stride, weights = sort.chosen_stride, sort.weight
    for t in range(tokens):
        for i in range(sort.choices):
            count = counts + 8 * load_i64(chosen + 8 * (t * stride + i))
            place = load_i64(count)
            store_i64(count, place + 1)
            store_i64(sort.rows + 8 * place, t)
            store_f32(sort.row_weights + 4 * place, load_f32(weights + 4 * (t * stride + i)))
    for i in range(routed):
        store_i64(counts + 8 * active[i].expert, 0)
    store_i64(sort.distinct, everything)
    step.experts = everything
    step.expert_tiles = tile
    step.gathered_tiles = routed_tiles if tokens > 1 else 0
    return routed


@jit
def copy_words(source, target, words):
    """int64 after int64."""
    for i in range(0, 8 * words, 8):
        store_i64(target + i, load_i64(source + i))


@jit
def copy_scalars(source, target, count):
    """One token's scalars, which lie TILE float32 apart."""
    for i in range(0, 4 * TILE * count, 4 * TILE):
        store_f32(target + i, load_f32(source + i))


@kernel
def gather(o, step, tile, thread):
    """The activations of one routed tile's tokens, side by side (layouts: operands.py)."""
    groups, kind, tile_bytes = o.groups, o.kind, o.tile_bytes
    out = o.gathered + tile * tile_bytes
    tokens = o.tiles[tile].tokens
    for i in range(tokens):
        token = load_i64(o.rows + 8 * (TILE * tile + i))
        x, lane_in = o.x + token // TILE * tile_bytes, token % TILE
        for g in range(groups):
            if kind == ACT_F32:
                start = g * F32_TILE_GROUP
                copy_scalars(x + start + 4 * lane_in, out + start + 4 * i, 32)
            elif kind == ACT_Q8:
                start = g * Q8_TILE_GROUP
                copy_words(x + start + 32 * lane_in, out + start + 32 * i, 4)
                start += 32 * TILE
                copy_scalars(x + start + 4 * lane_in, out + start + 4 * i, 3)
            else:
                start = g * Q16_TILE_GROUP
                copy_words(x + start + 32 * lane_in, out + start + 32 * i, 4)
                start += 32 * TILE
                copy_words(x + start + 32 * lane_in, out + start + 32 * i, 4)
                start += 32 * TILE
                copy_scalars(x + start + 4 * lane_in, out + start + 4 * i, 4)
