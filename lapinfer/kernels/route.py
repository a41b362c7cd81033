"""Routing: which experts a token gets, the tokens of each expert as tiles, and their activations side by side.

Every token's choice is its own (spec.RouterSpec says how); of equal scores the expert with the lower number wins.
The chunk that finishes a step's last tile of tokens then sorts all (token, expert) pairs by expert, so that an
expert's weights are read once for all of its tokens, however many these are: nothing is padded to a capacity,
nothing dropped.
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
    LOGITS,
    NOT_A_NUMBER,
    NOT_READ,
    PROBLEM,
    PROBLEMS,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    SOFTMAX,
    SPARSEMIXER,
    STOP_TILE,
    TILE,
    TILE_EXPERT,
    TILE_TOKENS,
    TILE_X,
    TILES,
    TOKENS,
    offsets,
)
from lapinfer.kernels.simd import (
    atomic_add,
    atomic_store,
    iota,
    lane,
    load_f32,
    load_f32x16,
    load_i64,
    maximum,
    reduce_max,
    reduce_sum,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    where_less,
)
from lapinfer.kernels.vecmath import exp

(
    R_LOGITS, LOGITS_STRIDE, N_EXPERTS, TOP_K, SCORE, NORMALISE, EPS, SCALE, SELECTION_BIAS, GROUPS, TOP_GROUPS,
    GROUP_BEST, JITTER, SHARED, SHARED_GATE, CHOSEN, CHOSEN_STRIDE, WEIGHT, SCRATCH, SCRATCH_STRIDE, POSITION, FINISHED,
    COUNTS, ACTIVE, R_TILES, ROWS, ROW_WEIGHTS, X, TILE_BYTES, GATHERED,
) = offsets("route")  # fmt: skip

f32 = np.float32
NEVER = f32(-np.inf)


@jit
def note_problem(step, position, kind):
    """Keep the first problem of a step; but a failed read before others, since slots then hold what they should not."""
    known = load_i64(step + 8 * PROBLEM)
    if known == 0 or (kind == NOT_READ and known % PROBLEMS != NOT_READ):
        store_i64(step + 8 * PROBLEM, PROBLEMS * position + kind)


@jit
def exponentials(logits, experts, largest, out):
    """e^(l − largest) of all experts -> out, 0 in the lanes behind them; returns their sum."""
    total = splat_f32(f32(0.0))
    for e in range(0, experts, 16):
        value = exp(load_f32x16(logits + 4 * e) - splat_f32(largest))
        inside = iota() + splat_f32(f32(e))
        value = where_less(inside, splat_f32(f32(experts)), value, splat_f32(f32(0.0)))
        store_f32x16(out + 4 * e, value)
        total = total + value
    return reduce_sum(total)


@jit
def exp_of(x):
    """e^x of one number."""
    return lane(exp(splat_f32(x)), 0)


@jit
def largest_of(values, first, stop):
    """Where the largest of the float32 first … stop is; the first of equal ones."""
    best = first
    for e in range(first + 1, stop):
        if load_f32(values + 4 * e) > load_f32(values + 4 * best):
            best = e
    return best


@jit
def keep_best_groups(op, keys, experts, scores):
    """Take the experts of all but the best groups out of the choice. scores: room for a float32 a group."""
    groups, two = load_i64(op + GROUPS), load_i64(op + GROUP_BEST) == 2
    size = experts // groups
    for g in range(groups):
        first, second = NEVER, NEVER
        for e in range(g * size, g * size + size):
            value = load_f32(keys + 4 * e)
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        store_f32(scores + 4 * g, first + second if two else first)
    for _ in range(groups - load_i64(op + TOP_GROUPS)):
        worst = 0
        for g in range(1, groups):  # of equal groups the last goes
            if load_f32(scores + 4 * g) <= load_f32(scores + 4 * worst):
                worst = g
        store_f32(scores + 4 * worst, f32(np.inf))
        for e in range(worst * size, worst * size + size):
            store_f32(keys + 4 * e, NEVER)


@jit
def choose_best(op, values, keys, experts, chosen, weight):
    """The experts with the largest keys, weighed by their values. -> Σ of the weights."""
    bias = load_i64(op + SELECTION_BIAS)
    for e in range(experts):
        key = load_f32(values + 4 * e)
        store_f32(keys + 4 * e, key if bias == 0 else key + load_f32(bias + 4 * e))
    if load_i64(op + GROUPS) > 1:
        keep_best_groups(op, keys, experts, keys + 4 * experts)
    total = f32(0.0)
    for i in range(load_i64(op + TOP_K)):
        e = largest_of(keys, 0, experts)
        value = load_f32(values + 4 * e)
        store_f32(keys + 4 * e, NEVER)
        store_i64(chosen + 8 * i, e)
        store_f32(weight + 4 * i, value)
        total += value
    return total


@jit
def choose_sparse(op, logits, keys, experts, chosen, weight):
    """Two experts by sparsemixer (Phi-3.5-MoE; transformers/models/phimoe, as at inference)."""
    limit = f32(2.0) * load_f32(op + JITTER)
    for e in range(experts):
        store_f32(keys + 4 * e, load_f32(logits + 4 * e))
    for i in range(2):
        best = largest_of(keys, 0, experts)
        largest = load_f32(keys + 4 * best)
        total = f32(0.0)
        for e in range(experts):
            value = load_f32(keys + 4 * e)
            far = (largest - value) / max(abs(load_f32(logits + 4 * e)), largest) > limit  # 0 / 0 is near
            if value > NEVER and not far:
                total += exp_of(value - largest)
        store_f32(keys + 4 * best, NEVER)
        store_i64(chosen + 8 * i, best)
        store_f32(weight + 4 * i, f32(1.0) / total)


@jit
def choose(op, logits, scratch, chosen, weight):
    """The experts of one token and their weights; whether all its logits were finite."""
    experts, score, top_k = load_i64(op + N_EXPERTS), load_i64(op + SCORE), load_i64(op + TOP_K)
    largest, check = splat_f32(NEVER), splat_f32(f32(0.0))
    for e in range(0, experts, 16):
        value = load_f32x16(logits + 4 * e)
        check = check + value * splat_f32(f32(0.0))  # NaN for what is not finite
        inside = iota() + splat_f32(f32(e))
        largest = maximum(largest, where_less(inside, splat_f32(f32(experts)), value, splat_f32(NEVER)))
    top = reduce_max(largest)
    values, keys = scratch, scratch + 4 * ((experts + 15) // 16 * 16)
    factor = load_f32(op + SCALE)
    if score == SPARSEMIXER:
        choose_sparse(op, logits, keys, experts, chosen, weight)
    elif score == LOGITS:
        choose_best(op, logits, keys, experts, chosen, weight)
        top = load_f32(weight + 4 * largest_of(weight, 0, top_k))  # a bias or groups may leave out a larger one
        total = f32(0.0)
        for i in range(top_k):
            value = exp_of(load_f32(weight + 4 * i) - top)
            store_f32(weight + 4 * i, value)
            total += value
        factor = factor / total
        if load_i64(op + NORMALISE) != 0:
            factor = factor / (f32(1.0) + load_f32(op + EPS))
    else:
        if score == SOFTMAX:
            inverse = splat_f32(f32(1.0) / exponentials(logits, experts, top, values))
            for e in range(0, experts, 16):
                store_f32x16(values + 4 * e, load_f32x16(values + 4 * e) * inverse)
        else:
            one, zero = splat_f32(f32(1.0)), splat_f32(f32(0.0))
            for e in range(0, experts, 16):
                store_f32x16(values + 4 * e, one / (one + exp(zero - load_f32x16(logits + 4 * e))))
        total = choose_best(op, values, keys, experts, chosen, weight)
        if load_i64(op + NORMALISE) != 0:
            factor = factor / (total + load_f32(op + EPS))
    for i in range(top_k):
        store_f32(weight + 4 * i, load_f32(weight + 4 * i) * factor)
    return reduce_sum(check) == f32(0.0)


@jit
def add_tiles(op, expert, tokens, tile):
    """Enter an expert and its tiles into the tables; returns the next free tile."""
    table = load_i64(op + R_TILES)
    for first in range(0, tokens, TILE):
        entry = table + 8 * len(EXPERT_TILE) * tile
        store_i64(entry + 8 * TILE_EXPERT, expert)
        store_i64(entry + 8 * TILE_TOKENS, min(TILE, tokens - first))
        tile += 1
    return tile


@jit
def sort_by_expert(op, step):
    """The step's tokens as tiles of one expert each, in the order of the experts; shared experts take all tokens.

    Routed tiles find their activations in `gathered`, tile by tile; a lone token's, and those of shared experts, are
    where the norm has left them.
    """
    tokens, top_k, experts = load_i64(step + 8 * TOKENS), load_i64(op + TOP_K), load_i64(op + N_EXPERTS)
    counts, active, tiles = load_i64(op + COUNTS), load_i64(op + ACTIVE), load_i64(op + R_TILES)
    rows, row_weights, chosen = load_i64(op + ROWS), load_i64(op + ROW_WEIGHTS), load_i64(op + CHOSEN)
    tile_bytes, shared = load_i64(op + TILE_BYTES), load_i64(op + SHARED)
    for e in range(experts + shared):
        store_i64(counts + 8 * e, 0 if e < experts else tokens)
    stride = load_i64(op + CHOSEN_STRIDE)
    for t in range(tokens):
        for i in range(top_k):
            at = counts + 8 * load_i64(chosen + 8 * (t * stride + i))
            store_i64(at, load_i64(at) + 1)
    tile, n_active, routed_tiles = 0, 0, 0
    for e in range(experts + shared):
        count = load_i64(counts + 8 * e)
        if count == 0:
            continue
        entry = active + 8 * len(ACTIVE_EXPERT) * n_active
        store_i64(entry + 8 * EXPERT, e)
        store_i64(entry + 8 * FIRST_TILE, tile)
        first = tile
        tile = add_tiles(op, e, count, tile)
        store_i64(entry + 8 * STOP_TILE, tile)
        if e < experts:
            routed_tiles = tile
            store_i64(counts + 8 * e, TILE * first)  # for now: where its next token goes
        n_active += 1
        for at in range(first, tile):
            x = load_i64(op + GATHERED) + at * tile_bytes
            if e >= experts or tokens == 1:
                x = load_i64(op + X) + (at - first) * tile_bytes if tokens > 1 else load_i64(op + X)
            store_i64(tiles + 8 * (len(EXPERT_TILE) * at + TILE_X), x)
        if e >= experts:
            gate = load_i64(op + SHARED_GATE)
            for t in range(tokens):
                weight = f32(1.0)
                if gate != 0:
                    logit = load_f32(load_i64(op + R_LOGITS) + t * load_i64(op + LOGITS_STRIDE) + 4 * experts)
                    weight = f32(1.0) / (f32(1.0) + exp_of(-logit))
                store_i64(rows + 8 * (TILE * first + t), t)
                store_f32(row_weights + 4 * (TILE * first + t), weight)
    for t in range(tokens):
        for i in range(top_k):
            at = counts + 8 * load_i64(chosen + 8 * (t * stride + i))
            place = load_i64(at)
            store_i64(at, place + 1)
            store_i64(rows + 8 * place, t)
            store_f32(row_weights + 4 * place, load_f32(load_i64(op + WEIGHT) + 4 * (t * stride + i)))
    for i in range(n_active):  # places become counts again
        entry = active + 8 * len(ACTIVE_EXPERT) * i
        e = load_i64(entry + 8 * EXPERT)
        if e < experts:
            store_i64(counts + 8 * e, load_i64(counts + 8 * e) - TILE * load_i64(entry + 8 * FIRST_TILE))
    store_i64(step + 8 * EXPERTS, n_active)
    store_i64(step + 8 * EXPERT_TILES, tile)
    store_i64(step + 8 * GATHERED_TILES, routed_tiles if tokens > 1 else 0)


@kernel
def route(op, step, chunk, thread):
    """Choose the experts of a tile of tokens; the last one to finish sorts them all."""
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    stride = load_i64(op + CHOSEN_STRIDE)
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        logits = load_i64(op + R_LOGITS) + t * load_i64(op + LOGITS_STRIDE)
        chosen, weight = load_i64(op + CHOSEN) + 8 * t * stride, load_i64(op + WEIGHT) + 4 * t * stride
        if not choose(op, logits, scratch, chosen, weight):
            note_problem(step, load_i64(op + POSITION), NOT_A_NUMBER)
    finished = load_i64(op + FINISHED)
    if atomic_add(finished, 1) + 1 == load_i64(step + 8 * TILES):
        atomic_store(finished, 0)
        sort_by_expert(op, step)


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
