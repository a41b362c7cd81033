"""A step's tokens by expert: all (token, expert) pairs as tiles of one expert each, and their activations side by side.

So that an expert's weights are read once for all of its tokens, however many these are: nothing is padded to a
capacity, nothing dropped.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import ACT_F32, ACT_Q16, TILE
from lapinfer.kernels.simd import lane, load_f32, load_i64, splat_f32, store_f32, store_i64
from lapinfer.kernels.system import is_last
from lapinfer.kernels.vecmath import exp
from lapinfer.quant import GROUP

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
def copy_scalars(source, lanes, target, target_lanes, count):
    """One token's scalars, which lie as many float32 apart as there are tokens side by side."""
    for i in range(count):
        store_f32(target + 4 * i * target_lanes, load_f32(source + 4 * i * lanes))


@jit
def copy_token(kind, groups, source, lanes, lane_in, target, target_lanes, target_lane):
    """One token's activations, from its place among those of `lanes` tokens to one among those of `target_lanes`.

    The layouts are those of tiles (operands.py), for any number of tokens side by side.
    """
    words, planes, scalars = 4, 1, 3
    if kind == ACT_F32:
        words, planes, scalars = 0, 0, GROUP
    elif kind == ACT_Q16:
        planes, scalars = 2, 4
    for _ in range(groups):
        for _ in range(planes):
            copy_words(source + 8 * words * lane_in, target + 8 * words * target_lane, words)
            source, target = source + 8 * words * lanes, target + 8 * words * target_lanes
        copy_scalars(source + 4 * lane_in, lanes, target + 4 * target_lane, target_lanes, scalars)
        source, target = source + 4 * scalars * lanes, target + 4 * scalars * target_lanes


@kernel
def gather(o, step, tile, thread):
    """The activations of one routed tile's tokens, side by side."""
    out = o.gathered + tile * o.tile_bytes
    for i in range(o.tiles[tile].tokens):
        token = load_i64(o.rows + 8 * (TILE * tile + i))
        x = o.x + token // TILE * o.tile_bytes
        copy_token(o.kind, o.groups, x, TILE, token % TILE, out, TILE, i)
