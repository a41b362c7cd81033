"""Routing: which experts a token gets.

Every token's choice is its own (spec.RouterSpec says how); of equal scores the expert with the lower number wins.
The chunk that finishes a step's last tile of tokens then sorts them all by expert (kernels/sort.py).
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import LOGITS, NOT_A_NUMBER, SOFTMAX, SPARSEMIXER, TILE
from lapinfer.kernels.problem import note_problem
from lapinfer.kernels.simd import (
    iota,
    load_f32,
    load_f32x16,
    maximum,
    reduce_max,
    reduce_sum,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    where_less,
)
from lapinfer.kernels.sort import exp_of, last_of_step, sort_by_expert
from lapinfer.kernels.vecmath import exp

f32 = np.float32
NEVER = f32(-np.inf)


@jit
def exponentials(logits, experts, largest, out):
    """e^(l − largest) of all experts -> out, 0 in the lanes after them; returns their sum."""
    total = splat_f32(f32(0.0))
    for e in range(0, experts, 16):
        value = exp(load_f32x16(logits + 4 * e) - splat_f32(largest))
        inside = iota() + splat_f32(f32(e))
        value = where_less(inside, splat_f32(f32(experts)), value, splat_f32(f32(0.0)))
        store_f32x16(out + 4 * e, value)
        total = total + value
    return reduce_sum(total)


@jit
def largest_of(values, first, stop):
    """Where the largest of the float32 first … stop is; the first of equal ones."""
    best = first
    for e in range(first + 1, stop):
        if load_f32(values + 4 * e) > load_f32(values + 4 * best):
            best = e
    return best


@jit
def keep_best_groups(router, keys, experts, scores):
    """Take the experts of all but the best groups out of the choice. scores: room for a float32 per group."""
    groups, two = router.groups, router.group_best == 2
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
    for _ in range(groups - router.top_groups):
        worst = 0
        for g in range(1, groups):  # of equal groups the last goes
            if load_f32(scores + 4 * g) <= load_f32(scores + 4 * worst):
                worst = g
        store_f32(scores + 4 * worst, f32(np.inf))
        for e in range(worst * size, worst * size + size):
            store_f32(keys + 4 * e, NEVER)


@jit
def choose_best(router, values, keys, experts, chosen, weight):
    """The experts with the largest keys, weighed by their values. -> Σ of the weights."""
    bias = router.selection_bias
    for e in range(experts):
        key = load_f32(values + 4 * e)
        store_f32(keys + 4 * e, key if bias == 0 else key + load_f32(bias + 4 * e))
    if router.groups > 1:
        keep_best_groups(router, keys, experts, keys + 4 * experts)
    total = f32(0.0)
    for i in range(router.top_k):
        e = largest_of(keys, 0, experts)
        value = load_f32(values + 4 * e)
        store_f32(keys + 4 * e, NEVER)
        store_i64(chosen + 8 * i, e)
        store_f32(weight + 4 * i, value)
        total += value
    return total


@jit
def choose_sparse(router, logits, keys, experts, chosen, weight):
    """Two experts by sparsemixer (Phi-3.5-MoE; transformers/models/phimoe, as at inference)."""
    limit = f32(2.0) * router.jitter
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
def choose(router, logits, scratch, chosen, weight):
    """The experts of one token and their weights; whether all its logits were finite."""
    experts, score, top_k = router.experts, router.score, router.top_k
    largest, check = splat_f32(NEVER), splat_f32(f32(0.0))
    for e in range(0, experts, 16):
        value = load_f32x16(logits + 4 * e)
        check = check + value * splat_f32(f32(0.0))  # NaN for what is not finite
        inside = iota() + splat_f32(f32(e))
        largest = maximum(largest, where_less(inside, splat_f32(f32(experts)), value, splat_f32(NEVER)))
    top = reduce_max(largest)
    values, keys = scratch, scratch + 4 * ((experts + 15) // 16 * 16)
    factor = router.scale
    if score == SPARSEMIXER:
        choose_sparse(router, logits, keys, experts, chosen, weight)
    elif score == LOGITS:
        choose_best(router, logits, keys, experts, chosen, weight)
        top = load_f32(weight + 4 * largest_of(weight, 0, top_k))  # a bias or groups may leave out a larger one
        total = f32(0.0)
        for i in range(top_k):
            value = exp_of(load_f32(weight + 4 * i) - top)
            store_f32(weight + 4 * i, value)
            total += value
        factor = factor / total
        if router.normalise != 0:
            factor = factor / (f32(1.0) + router.eps)
    else:
        if score == SOFTMAX:
            inverse = splat_f32(f32(1.0) / exponentials(logits, experts, top, values))
            for e in range(0, experts, 16):
                store_f32x16(values + 4 * e, load_f32x16(values + 4 * e) * inverse)
        else:
            one, zero = splat_f32(f32(1.0)), splat_f32(f32(0.0))
            for e in range(0, experts, 16):
                store_f32x16(values + 4 * e, one / (one + exp(zero - load_f32x16(logits + 4 * e))))
        total = choose_best(router, values, keys, experts, chosen, weight)
        if router.normalise != 0:
            factor = factor / max(total + router.eps, router.least_sum)
    for i in range(top_k):
        store_f32(weight + 4 * i, load_f32(weight + 4 * i) * factor)
    return reduce_sum(check) == f32(0.0)


@kernel
def route(o, step, chunk, thread):
    """Choose the experts of a tile of tokens; the last one to finish sorts them all."""
    scratch = o.scratch + thread * o.scratch_stride
    choice, sort = o.choice, o.sort
    stride = sort.chosen_stride
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        logits = choice.logits + t * choice.logits_stride
        chosen, weight = sort.chosen + 8 * t * stride, sort.weight + 4 * t * stride
        if not choose(choice, logits, scratch, chosen, weight):
            note_problem(step, sort.position, NOT_A_NUMBER)
    if last_of_step(sort, step):
        sort_by_expert(sort, step)
