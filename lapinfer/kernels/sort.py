"""A step's tokens by expert: all (token, expert) pairs as tiles of one expert each, and their activations side by side.

So that an expert's weights are read once for all of its tokens, however many these are: nothing is padded to a
capacity, nothing dropped.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q8,
    ACTIVE_EXPERT,
    EXPERT,
    EXPERT_TILE,
    EXPERT_TILES,
    EXPERTS,
    F32_TILE_GROUP,
    FIRST_TILE,
    GATHERED_TILES,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    SORT,
    STOP_TILE,
    TILE,
    TILE_EXPERT,
    TILE_TOKENS,
    TILE_X,
    TILES,
    TOKENS,
    offsets,
)
from lapinfer.kernels.simd import atomic_add, atomic_store, lane, load_f32, load_i64, splat_f32, store_f32, store_i64
from lapinfer.kernels.vecmath import exp

(
    ROUTED, CHOICES, SHARED, SHARED_WEIGHT, SHARED_GATE, GATE_STRIDE, CHOSEN, CHOSEN_STRIDE, WEIGHT, POSITION,
    FINISHED, COUNTS, ACTIVE, TILE_TABLE, ROWS, ROW_WEIGHTS, X, TILE_BYTES, GATHERED, DISTINCT,
) = (8 * i for i in range(len(SORT)))  # fmt: skip
"""Offsets from where an op's SORT operands begin."""

ENTRY = 8 * len(ACTIVE_EXPERT)
f32 = np.float32


@jit
def exp_of(x):
    """e^x of one number."""
    return lane(exp(splat_f32(x)), 0)


@jit
def last_of_step(sort, step):
    """Whether this chunk, a tile of tokens, is the last of the step to come to its end."""
    finished = load_i64(sort + FINISHED)
    if atomic_add(finished, 1) + 1 < load_i64(step + 8 * TILES):
        return False
    atomic_store(finished, 0)
    return True


@jit
def list_active(sort, tokens):
    """Count the tokens of each routed expert, and list those that have any, by number; returns how many there are."""
    counts, active, chosen = load_i64(sort + COUNTS), load_i64(sort + ACTIVE), load_i64(sort + CHOSEN)
    stride, n = load_i64(sort + CHOSEN_STRIDE), 0
    for t in range(tokens):
        for i in range(load_i64(sort + CHOICES)):
            e = load_i64(chosen + 8 * (t * stride + i))
            count = load_i64(counts + 8 * e)
            if count == 0:
                store_i64(active + ENTRY * n + 8 * EXPERT, e)
                n += 1
            store_i64(counts + 8 * e, count + 1)
    gap = n // 2
    while gap > 0:  # Shell's sort: there may be thousands of experts, of which a step has few
        for i in range(gap, n):
            e, j = load_i64(active + ENTRY * i + 8 * EXPERT), i
            while j >= gap and load_i64(active + ENTRY * (j - gap) + 8 * EXPERT) > e:
                store_i64(active + ENTRY * j + 8 * EXPERT, load_i64(active + ENTRY * (j - gap) + 8 * EXPERT))
                j -= gap
            store_i64(active + ENTRY * j + 8 * EXPERT, e)
        gap //= 2
    return n


@jit
def add_tiles(sort, expert, tokens, tile, lone):
    """Enter an expert's tiles into the table, and where their activations are; returns the next free tile.

    Those of routed experts are in `gathered`, tile by tile; a lone token's, and those of shared experts, are where
    the norm has left them.
    """
    in_place = lone or expert >= load_i64(sort + ROUTED)
    x = load_i64(sort + X) if in_place else load_i64(sort + GATHERED) + tile * load_i64(sort + TILE_BYTES)
    for first in range(0, tokens, TILE):
        entry = load_i64(sort + TILE_TABLE) + 8 * len(EXPERT_TILE) * tile
        store_i64(entry + 8 * TILE_EXPERT, expert)
        store_i64(entry + 8 * TILE_TOKENS, min(TILE, tokens - first))
        store_i64(entry + 8 * TILE_X, x)
        x += load_i64(sort + TILE_BYTES)
        tile += 1
    return tile


@jit
def give_to_all(sort, tokens, place):
    """A shared expert's rows and weights, from `place` on: all tokens."""
    gate = load_i64(sort + SHARED_GATE)
    for t in range(tokens):
        weight = load_f32(sort + SHARED_WEIGHT)
        if gate != 0:
            weight = f32(1.0) / (f32(1.0) + exp_of(-load_f32(gate + t * load_i64(sort + GATE_STRIDE))))
        store_i64(load_i64(sort + ROWS) + 8 * (place + t), t)
        store_f32(load_i64(sort + ROW_WEIGHTS) + 4 * (place + t), weight)


@jit
def sort_by_expert(sort, step):
    """The step's tokens as tiles of one expert each, in the order of the experts; shared experts take all tokens.

    Returns how many routed experts are active. `counts` are zero before and after.
    """
    tokens, experts, active = load_i64(step + 8 * TOKENS), load_i64(sort + ROUTED), load_i64(sort + ACTIVE)
    counts, chosen = load_i64(sort + COUNTS), load_i64(sort + CHOSEN)
    routed, tile, routed_tiles = list_active(sort, tokens), 0, 0
    everything = routed + load_i64(sort + SHARED)
    for i in range(everything):
        entry = active + ENTRY * i
        if i >= routed:
            store_i64(entry + 8 * EXPERT, experts + i - routed)
            give_to_all(sort, tokens, TILE * tile)
        e, first = load_i64(entry + 8 * EXPERT), tile
        tile = add_tiles(sort, e, load_i64(counts + 8 * e) if i < routed else tokens, tile, tokens == 1)
        store_i64(entry + 8 * FIRST_TILE, first)
        store_i64(entry + 8 * STOP_TILE, tile)
        if i < routed:
            routed_tiles = tile
            store_i64(counts + 8 * e, TILE * first)  # for now: where its next token goes
    stride, weights = load_i64(sort + CHOSEN_STRIDE), load_i64(sort + WEIGHT)
    for t in range(tokens):
        for i in range(load_i64(sort + CHOICES)):
            at = counts + 8 * load_i64(chosen + 8 * (t * stride + i))
            place = load_i64(at)
            store_i64(at, place + 1)
            store_i64(load_i64(sort + ROWS) + 8 * place, t)
            store_f32(load_i64(sort + ROW_WEIGHTS) + 4 * place, load_f32(weights + 4 * (t * stride + i)))
    for i in range(routed):
        store_i64(counts + 8 * load_i64(active + ENTRY * i + 8 * EXPERT), 0)
    store_i64(load_i64(sort + DISTINCT), everything)
    store_i64(step + 8 * EXPERTS, everything)
    store_i64(step + 8 * EXPERT_TILES, tile)
    store_i64(step + 8 * GATHERED_TILES, routed_tiles if tokens > 1 else 0)
    return routed


(G_X, G_GROUPS, G_KIND, G_TILES, G_ROWS, G_GATHERED, G_TILE_BYTES) = offsets("gather")


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
def gather(op, step, tile, thread):
    """The activations of one routed tile's tokens, side by side (layouts: operands.py)."""
    groups, kind, tile_bytes = load_i64(op + G_GROUPS), load_i64(op + G_KIND), load_i64(op + G_TILE_BYTES)
    out = load_i64(op + G_GATHERED) + tile * tile_bytes
    tokens = load_i64(load_i64(op + G_TILES) + 8 * (len(EXPERT_TILE) * tile + TILE_TOKENS))
    for i in range(tokens):
        token = load_i64(load_i64(op + G_ROWS) + 8 * (TILE * tile + i))
        x, lane_in = load_i64(op + G_X) + token // TILE * tile_bytes, token % TILE
        for g in range(groups):
            if kind == ACT_F32:
                at = g * F32_TILE_GROUP
                copy_scalars(x + at + 4 * lane_in, out + at + 4 * i, 32)
            elif kind == ACT_Q8:
                at = g * Q8_TILE_GROUP
                copy_words(x + at + 32 * lane_in, out + at + 32 * i, 4)
                at += 32 * TILE
                copy_scalars(x + at + 4 * lane_in, out + at + 4 * i, 3)
            else:
                at = g * Q16_TILE_GROUP
                copy_words(x + at + 32 * lane_in, out + at + 32 * i, 4)
                at += 32 * TILE
                copy_words(x + at + 32 * lane_in, out + at + 32 * i, 4)
                at += 32 * TILE
                copy_scalars(x + at + 4 * lane_in, out + at + 4 * i, 4)
