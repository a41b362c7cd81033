"""The best logits of a head, without reading all of it.

A first pass has multiplied a coarse copy of the head (an ordinary matmul). For a row w, its copy c and residual
r = w − c, the logit is off by r · x, of which ‖r‖ ‖x‖ / √D is the standard deviation over directions of x. Rows whose
coarse logit is more than a margin of so many deviations below a bound cannot be among the best.

`shortlist` lists the row blocks with the best coarse logits; `best_rows` multiplies what is listed, and from then on
the bound is exact: the k-th best of the logits that have been computed. Whoever finishes the last of them lists what
may still reach it. How far the computed logits were off is watched: where that comes near the margin, the margin is
widened, and in the end the whole head is read. A logit has the bits that the whole head would have given it, because
`multiply` adds up in one order.

Where only some rows are allowed, the best are the best of these: other rows have no logit and set no bound, and row
blocks without an allowed row are not read. Errors are watched in all rows that were read.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.multiply import add_bias, multiply
from lapinfer.kernels.operands import BEST_MARGINS, BEST_NEAR, BEST_ROUNDS, TILE
from lapinfer.kernels.products import PACKED
from lapinfer.kernels.simd import (
    absolute,
    fma,
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
    where_bit,
    where_less,
)
from lapinfer.kernels.stamp import stamped
from lapinfer.kernels.system import is_last
from lapinfer.kernels.vecmath import cap

f32 = np.float32
INFINITY = f32(np.inf)
NEAR, NARROW, WIDE = f32(BEST_NEAR), f32(BEST_MARGINS[0]), f32(BEST_MARGINS[1])


# ---- the k-th largest of many numbers: the root of a heap of the k largest so far ----


@jit
def empty_heap(heap, k):
    """float32 heap[k] of nothing yet."""
    for i in range(k):
        store_f32(heap + 4 * i, -INFINITY)


@jit
def offer(heap, k, value):
    """Keep a number that is larger than the root, instead of it."""
    if not value > load_f32(heap):
        return
    place, child = 0, 1
    while child < k:
        below = load_f32(heap + 4 * child)
        if child + 1 < k and load_f32(heap + 4 * child + 4) < below:
            child += 1
            below = load_f32(heap + 4 * child)
        if value <= below:
            break
        store_f32(heap + 4 * place, below)
        place, child = child, 2 * child + 1
    store_f32(heap + 4 * place, value)


# ---- rows that are allowed ----


@jit
def allowed_rows(best, token, block, values):
    """16 logits, −∞ where they are not allowed."""
    if best.state[0].masked == 0:
        return values
    return where_bit(load_i64(best.allowed + 8 * (token * best.blocks + block)), values, splat_f32(-INFINITY))


# ---- lists ----


@jit
def read_all(best, step):
    """Let the whole head be read after all."""
    state = best.state[0]
    state.rest = best.blocks - state.listed
    step.best_blocks = 0
    step.whole_head = 1


@jit
def list_block(best, block):
    state = best.state[0]
    store_i64(best.mark + 8 * block, 1)
    store_i64(best.list + 8 * state.listed, block)
    state.listed += 1


@jit
def begin_round(best, step, first):
    """What is listed from `first` on is to be multiplied, if it is worth it."""
    state = best.state[0]
    if state.listed > best.most_blocks:
        state.listed = first
        read_all(best, step)
        return
    state.first = first
    store_i64(best.counts + 8 * state.round, state.listed - first)
    step.best_blocks = state.listed - first


@jit
def norm_of(x, width):
    total = splat_f32(f32(0.0))
    for i in range(0, 4 * width, 64):
        total = fma(load_f32x16(x + i), load_f32x16(x + i), total)
    return np.sqrt(reduce_sum(total))


@jit
def list_best_blocks(best, step, heap):
    """The row blocks with the k largest coarse logits, of each token."""
    state, blocks, k = best.state[0], best.blocks, step.best
    state.listed = state.round = state.level = state.rest = 0
    for i in range(BEST_ROUNDS):
        store_i64(best.counts + 8 * i, 0)
    if state.not_finite != 0:
        state.not_finite = 0
        read_all(best, step)
        return
    for t in range(step.want):
        deviation = norm_of(best.exact + t * best.exact_stride, best.exact_stride // 4) * best.deviation
        store_f32(best.deviations + 4 * t, deviation)
        largest = best.coarse_max + 4 * t * blocks
        empty_heap(heap, k)
        for b in range(blocks):
            offer(heap, k, load_f32(largest + 4 * b))
        least = load_f32(heap)
        for b in range(blocks):
            value = load_f32(largest + 4 * b)
            if value >= least and value > -INFINITY and load_i64(best.mark + 8 * b) == 0:
                list_block(best, b)
    begin_round(best, step, 0)


@jit
def reaches(best, token, block, margin, bound):
    """Whether a logit of this row block may be as large as the bound."""
    coarse = load_f32x16(best.coarse + token * best.coarse_stride + 64 * block)
    most = fma(load_f32x16(best.norms + 64 * block), splat_f32(margin), coarse)
    return reduce_max(allowed_rows(best, token, block, most)) >= bound


@jit
def list_more(best, step, margin, heap):
    """The row blocks that are not listed yet, and may hold one of the k largest logits of a token."""
    state, blocks, k = best.state[0], best.blocks, step.best
    before = state.listed
    for t in range(step.want):
        empty_heap(heap, k)
        for i in range(before):
            row = best.logits + t * best.logits_stride + 64 * load_i64(best.list + 8 * i)
            for j in range(0, 64, 4):
                offer(heap, k, load_f32(row + j))
        bound, wide = load_f32(heap), margin * load_f32(best.deviations + 4 * t)
        largest = best.coarse_max + 4 * t * blocks
        for b in range(blocks):
            value = load_f32(largest + 4 * b)
            if (
                value > -INFINITY
                and value + wide * load_f32(best.block_norms + 4 * b) >= bound
                and load_i64(best.mark + 8 * b) == 0
                and reaches(best, t, b, wide, bound)
            ):
                list_block(best, b)
    begin_round(best, step, before)


@jit
def next_round(best, step, heap):
    """When all that is listed is multiplied: list what else may be among the best, by what the errors were."""
    state, worst = best.state[0], f32(0.0)
    for i in range(state.first, state.listed):
        worst = max(worst, load_f32(best.worst + 4 * i))
    level = state.level
    if level == 0 and worst > NEAR * NARROW:
        level = 1
    if level == 1 and not worst <= NEAR * WIDE:
        level = 2
    state.round += 1
    step.best_blocks = 0
    if state.round > 1 and level == state.level:
        return
    state.level = level
    if level == 2 or state.round == BEST_ROUNDS:
        read_all(best, step)
    else:
        list_more(best, step, NARROW if level == 0 else WIDE, heap)


# ---- kernels ----


@kernel
def shortlist(o, step, chunk, thread):
    """Some row blocks of no logits yet; the last chunk lists those that are multiplied first."""
    best = o.best
    first = chunk * o.unit
    last = min(first + o.unit, best.blocks)
    none, infinity = splat_f32(-INFINITY), splat_f32(INFINITY)
    zero, one = splat_f32(f32(0.0)), splat_f32(f32(1.0))
    wrong = zero
    for b in range(first, last):
        store_i64(best.mark + 8 * b, 0)
    for t in range(step.want):
        coarse, logits = best.coarse + t * best.coarse_stride, best.logits + t * best.logits_stride
        largest = best.block_max + 4 * t * best.blocks
        for b in range(first, last):
            # Padded rows have −inf, anything else that is not finite is an error.
            values = load_f32x16(coarse + 64 * b)
            wrong = maximum(wrong, where_less(values, infinity, zero, one))
            if best.state[0].masked != 0:
                store_f32(best.coarse_max + 4 * (t * best.blocks + b), reduce_max(allowed_rows(best, t, b, values)))
            store_f32x16(logits + 64 * b, none)
            store_f32(largest + 4 * b, -INFINITY)
    if reduce_max(wrong) > f32(0.0):
        best.state[0].not_finite = 1
    if is_last(best.finished, o.chunks):
        list_best_blocks(best, step, o.scratch + thread * o.scratch_stride)


@stamped(PACKED)
def best_rows(W, o, step, chunk, thread):
    """A listed row block of the head; the last chunk lists those that come next."""
    best, groups, tokens = o.best, o.groups, step.want
    state = best.state[0]
    place = state.first + chunk
    block = load_i64(best.list + 8 * place)
    y = o.scratch + thread * o.scratch_stride
    scale, norms, zero = splat_f32(o.scale), load_f32x16(best.norms + 64 * block), splat_f32(f32(0.0))
    worst = zero
    for first_token in range(0, tokens, TILE):
        x = o.x + first_token // TILE * o.tile_bytes
        n = min(TILE, tokens - first_token)
        multiply(W, o.weights, best.blocks, groups, block, 1, x, n, y, 64)
        add_bias(o.bias if o.bias == 0 else o.bias + 64 * block, y, 64, 1, n)
        for i in range(n):
            t = first_token + i
            value = cap(load_f32x16(y + 64 * i) * scale, o.softcap)
            kept = allowed_rows(best, t, block, value)
            store_f32x16(best.logits + t * best.logits_stride + 64 * block, kept)
            store_f32(best.block_max + 4 * (t * best.blocks + block), reduce_max(kept))
            error = absolute(value - load_f32x16(best.coarse + t * best.coarse_stride + 64 * block))
            error = error / (norms * splat_f32(load_f32(best.deviations + 4 * t)))
            worst = maximum(worst, where_less(error, splat_f32(INFINITY), error, zero))  # not of padded rows
    store_f32(best.worst + 4 * place, reduce_max(worst))
    if is_last(best.finished, step.best_blocks):
        next_round(best, step, y)
