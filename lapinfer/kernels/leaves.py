"""Narrow leaves of fast feedforward layers, neuron by neuron: their rows times tokens, and what they give back.

Leaves that are wide enough for blocks of 16 rows are experts like any others (kernels/experts.py).
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.operands import (
    ACTIVE_EXPERT,
    EXPERT,
    EXPERT_TILE,
    EXPERT_TILES,
    FIRST_TILE,
    LEAVES,
    STOP_TILE,
    STORE,
    TILE,
    TILE_EXPERT,
    TILE_TOKENS,
    TOKENS,
    offsets,
)
from lapinfer.kernels.rows import (
    add_bf16,
    add_f16,
    add_f32,
    add_q4,
    add_q8,
    dot_bf16,
    dot_f16,
    dot_f32,
    dot_q4,
    dot_q8,
)
from lapinfer.kernels.simd import (
    ask,
    fma,
    iota,
    load_f32,
    load_f32x16,
    load_i64,
    reduce_sum,
    splat_f32,
    store_f32,
    store_f32x16,
    tile_of_2,
    tile_of_8,
    tile_of_16,
    where_less,
)
from lapinfer.kernels.vecmath import activate, gated
from lapinfer.quant import GROUP
from lapinfer.quant.rows import row_layout

(
    LEAF_TABLE, LEAF_STRIDE, OUTWARD, WIDTH, IS_GATED, ACTIVATION, INWARD_GROUPS, OUTWARD_GROUPS, BIAS, BIAS_STRIDE,
    OUTWARD_BIAS, OUTWARD_BIAS_STRIDE, LEAF_WEIGHT, SCALE, MODE, OUT, OUT_STRIDE, OUT_WIDTH, SCRATCH, SCRATCH_STRIDE,
) = (8 * i for i in range(len(LEAVES)))  # fmt: skip

COLUMN_BYTES = 4 * GROUP
TOGETHER = 8
"""Neurons whose outward rows are read side by side: as many streams as a processor follows with ease."""
HEAD_Q4 = row_layout("q4").head_bytes
GROUP_F32, GROUP_F16, GROUP_BF16, GROUP_Q8, GROUP_Q4 = (
    row_layout(name).group_bytes for name in ("f32", "f16", "bf16", "q8", "q4")
)
f32 = np.float32


@jit
def row_times(dot, head_bytes, group_bytes, w, x, groups):
    """One row · one token."""
    acc, at = tile_of_2(), w + head_bytes
    for _ in range(groups):
        acc = dot(acc, at, 0, (x,))
        at += group_bytes
        x += COLUMN_BYTES
    total = reduce_sum(acc[0] + acc[1])
    return total if head_bytes == 0 else total * load_f32(w)


@jit
def four_rows_times(dot, head_bytes, group_bytes, w, x, groups, out, ahead, pace):
    """The same for four rows, one behind the other -> out [4]; with each group, asks for `pace` bytes of `ahead`."""
    acc, at, stride = tile_of_8(), w + head_bytes, head_bytes + groups * group_bytes
    for _ in range(groups):
        for line in range(0, pace, 64):
            ask(ahead + line)
        ahead += pace
        acc = dot(acc, at, stride, (x,))
        at += group_bytes
        x += COLUMN_BYTES
    store_f32(out, reduce_sum(acc[0] + acc[1]))
    store_f32(out + 4, reduce_sum(acc[2] + acc[3]))
    store_f32(out + 8, reduce_sum(acc[4] + acc[5]))
    store_f32(out + 12, reduce_sum(acc[6] + acc[7]))
    if head_bytes != 0:
        for r in range(4):
            store_f32(out + 4 * r, load_f32(out + 4 * r) * load_f32(w + r * stride))


@jit
def two_rows_times_four(dot, head_bytes, group_bytes, w, x0, x1, x2, x3, groups, out, out_stride):
    """Two rows · four tokens -> out[token] [2]."""
    acc, at, stride = tile_of_16(), w + head_bytes, head_bytes + groups * group_bytes
    for g in range(0, COLUMN_BYTES * groups, COLUMN_BYTES):
        acc = dot(acc, at, stride, (x0 + g, x1 + g, x2 + g, x3 + g))
        at += group_bytes
    unit0, unit1 = f32(1.0), f32(1.0)
    if head_bytes != 0:
        unit0, unit1 = load_f32(w), load_f32(w + stride)
    store_f32(out, reduce_sum(acc[0] + acc[1]) * unit0)
    store_f32(out + out_stride, reduce_sum(acc[2] + acc[3]) * unit0)
    store_f32(out + 2 * out_stride, reduce_sum(acc[4] + acc[5]) * unit0)
    store_f32(out + 3 * out_stride, reduce_sum(acc[6] + acc[7]) * unit0)
    store_f32(out + 4, reduce_sum(acc[8] + acc[9]) * unit1)
    store_f32(out + out_stride + 4, reduce_sum(acc[10] + acc[11]) * unit1)
    store_f32(out + 2 * out_stride + 4, reduce_sum(acc[12] + acc[13]) * unit1)
    store_f32(out + 3 * out_stride + 4, reduce_sum(acc[14] + acc[15]) * unit1)


@jit
def rows_times(dot, head_bytes, group_bytes, w, rows, x, groups, out, whole):
    """All rows · one token -> out [rows].

    whole: bytes from w on that are read once, now or soon after, or 0. What lies behind the first rows is asked for
    while they are multiplied: a few kilobytes at a new place are over before the processor sees a stream in them.
    """
    stride, r = head_bytes + groups * group_bytes, 0
    pace = max(whole - 4 * stride, 0) // max((rows // 4) * groups, 1)
    while r + 4 <= rows:
        ahead = w + 4 * stride + (r // 4) * groups * pace
        four_rows_times(dot, head_bytes, group_bytes, w + r * stride, x, groups, out + 4 * r, ahead, pace)
        r += 4
    while r < rows:
        store_f32(out + 4 * r, row_times(dot, head_bytes, group_bytes, w + r * stride, x, groups))
        r += 1


# ---- leaves ----


@jit
def activations(leaves, head_bytes, leaf, h):
    """Bias and activation of a leaf's first sums, in place: h [(2)F] -> [F], times the units of the rows back."""
    width, kind, number = load_i64(leaves + WIDTH), load_i64(leaves + ACTIVATION), leaf
    bias = load_i64(leaves + BIAS)
    is_gated = load_i64(leaves + IS_GATED) != 0
    if bias != 0:
        bias += number * load_i64(leaves + BIAS_STRIDE)
        for r in range(width + (width if is_gated else 0)):
            store_f32(h + 4 * r, load_f32(h + 4 * r) + load_f32(bias + 4 * r))
    for r in range(0, width, 16):  # lanes behind the last are room that nobody reads
        value = load_f32x16(h + 4 * r)
        other = load_f32x16(h + 4 * (width + r))
        store_f32x16(h + 4 * r, gated(kind, value, other) if is_gated else activate(kind, value))
    if head_bytes != 0:
        stride = load_i64(leaves + OUTWARD_GROUPS) * GROUP_Q4 + HEAD_Q4
        unit = leaf_address(leaves, leaf) + load_i64(leaves + OUTWARD)
        for r in range(width):
            store_f32(h + 4 * r, load_f32(h + 4 * r) * load_f32(unit + r * stride))


@jit
def leaf_address(leaves, leaf):
    return load_i64(leaves + LEAF_TABLE) + leaf * load_i64(leaves + LEAF_STRIDE)


@jit
def begin_output(leaves, leaf, out, first, stop):
    """out[groups first … stop] = the leaf's second bias, or zeros."""
    bias = load_i64(leaves + OUTWARD_BIAS)
    if bias != 0:
        bias += leaf * load_i64(leaves + OUTWARD_BIAS_STRIDE)
    for at in range(COLUMN_BYTES * first, COLUMN_BYTES * stop, 64):
        store_f32x16(out + at, splat_f32(f32(0.0)) if bias == 0 else load_f32x16(bias + at))


@jit
def add_rows(leaves, add, head_bytes, group_bytes, leaf, h, out, first, stop):
    """out[groups first … stop] += Σ h · row of one token."""
    stride, width = head_bytes + load_i64(leaves + OUTWARD_GROUPS) * group_bytes, load_i64(leaves + WIDTH)
    w = leaf_address(leaves, leaf) + load_i64(leaves + OUTWARD) + head_bytes
    for low in range(0, width, TOGETHER):
        high = min(low + TOGETHER, width)
        for g in range(first, stop):
            at = out + COLUMN_BYTES * g
            acc = (load_f32x16(at), load_f32x16(at + 64))
            for r in range(low, high):
                acc = add(acc, w + r * stride + g * group_bytes, (load_f32(h + 4 * r),))
            store_f32x16(at, acc[0])
            store_f32x16(at + 64, acc[1])


@jit
def add_rows_of_four(leaves, add, head_bytes, group_bytes, leaf, h, h_stride, out, out_stride, first, stop):
    """The same for four tokens, whose rows of h and out lie a stride apart."""
    stride, width = head_bytes + load_i64(leaves + OUTWARD_GROUPS) * group_bytes, load_i64(leaves + WIDTH)
    w = leaf_address(leaves, leaf) + load_i64(leaves + OUTWARD) + head_bytes
    for low in range(0, width, TOGETHER):
        high = min(low + TOGETHER, width)
        for g in range(first, stop):
            a = out + COLUMN_BYTES * g
            b, c, d = a + out_stride, a + 2 * out_stride, a + 3 * out_stride
            acc = (
                load_f32x16(a), load_f32x16(a + 64), load_f32x16(b), load_f32x16(b + 64),
                load_f32x16(c), load_f32x16(c + 64), load_f32x16(d), load_f32x16(d + 64),
            )  # fmt: skip
            for r in range(low, high):
                at = h + 4 * r
                factors = (
                    load_f32(at), load_f32(at + h_stride), load_f32(at + 2 * h_stride), load_f32(at + 3 * h_stride),
                )  # fmt: skip
                acc = add(acc, w + r * stride + g * group_bytes, factors)
            store_f32x16(a, acc[0])
            store_f32x16(a + 64, acc[1])
            store_f32x16(b, acc[2])
            store_f32x16(b + 64, acc[3])
            store_f32x16(c, acc[4])
            store_f32x16(c + 64, acc[5])
            store_f32x16(d, acc[6])
            store_f32x16(d + 64, acc[7])


@jit
def give_back(leaves, y, token, weight, first, stop):
    """out[token] += scale · weight · y in the groups first … stop; columns behind the last stay as they are."""
    factor = splat_f32(load_f32(leaves + SCALE) * weight)
    out, width = load_i64(leaves + OUT) + token * load_i64(leaves + OUT_STRIDE), load_i64(leaves + OUT_WIDTH)
    for column in range(GROUP * first, GROUP * stop, 16):
        value = load_f32x16(y + 4 * column)
        if column + 16 > width:
            inside = splat_f32(f32(width - column))
            value = where_less(iota(), inside, value, splat_f32(f32(0.0)))
        at = out + 4 * column
        store_f32x16(at, fma(value, factor, load_f32x16(at)))


@jit
def clear(leaves, tokens, first, stop):
    """out = 0, where it is not added to."""
    if load_i64(leaves + MODE) == STORE:
        for t in range(tokens):
            out = load_i64(leaves + OUT) + t * load_i64(leaves + OUT_STRIDE)
            for at in range(COLUMN_BYTES * first, COLUMN_BYTES * stop, 64):
                store_f32x16(out + at, splat_f32(f32(0.0)))


# ---- leaves of several tokens ----

(
    I_ACTIVE, I_TILES, I_ROWS, I_COLUMNS, I_COLUMN_STRIDE, I_HIDDEN, I_HIDDEN_STRIDE, I_LEAVES,
) = offsets("inward")[:8]  # fmt: skip


@jit
def inward(dot, head_bytes, group_bytes, op, step, chunk, thread):
    """The first neurons of an active leaf, for its tokens, activated."""
    leaves = op + I_LEAVES
    active = load_i64(op + I_ACTIVE) + 8 * len(ACTIVE_EXPERT) * chunk
    leaf, groups = load_i64(active + 8 * EXPERT), load_i64(leaves + INWARD_GROUPS)
    w, rows = leaf_address(leaves, leaf), load_i64(leaves + WIDTH) << load_i64(leaves + IS_GATED)
    h_stride, row_bytes = load_i64(op + I_HIDDEN_STRIDE), head_bytes + groups * group_bytes
    columns, stride = load_i64(op + I_COLUMNS), load_i64(op + I_COLUMN_STRIDE)
    for tile in range(load_i64(active + 8 * FIRST_TILE), load_i64(active + 8 * STOP_TILE)):
        n = load_i64(load_i64(op + I_TILES) + 8 * (len(EXPERT_TILE) * tile + TILE_TOKENS))
        at, h = load_i64(op + I_ROWS) + 8 * TILE * tile, load_i64(op + I_HIDDEN) + TILE * tile * h_stride
        t = 0
        while t + 4 <= n:
            x0 = columns + load_i64(at + 8 * t) * stride
            x1 = columns + load_i64(at + 8 * t + 8) * stride
            x2 = columns + load_i64(at + 8 * t + 16) * stride
            x3 = columns + load_i64(at + 8 * t + 24) * stride
            out = h + t * h_stride
            for r in range(0, rows - 1, 2):
                two_rows_times_four(
                    dot, head_bytes, group_bytes, w + r * row_bytes, x0, x1, x2, x3, groups, out + 4 * r, h_stride
                )
            if rows % 2 == 1:
                last, out = w + (rows - 1) * row_bytes, out + 4 * (rows - 1)
                store_f32(out, row_times(dot, head_bytes, group_bytes, last, x0, groups))
                store_f32(out + h_stride, row_times(dot, head_bytes, group_bytes, last, x1, groups))
                store_f32(out + 2 * h_stride, row_times(dot, head_bytes, group_bytes, last, x2, groups))
                store_f32(out + 3 * h_stride, row_times(dot, head_bytes, group_bytes, last, x3, groups))
            t += 4
        while t < n:
            x = columns + load_i64(at + 8 * t) * stride
            rows_times(dot, head_bytes, group_bytes, w, rows, x, groups, h + t * h_stride, 0)
            t += 1
        for t in range(n):
            activations(leaves, head_bytes, leaf, h + t * h_stride)


(
    O_UNIT, O_TILES, O_ROWS, O_ROW_WEIGHTS, O_HIDDEN, O_HIDDEN_STRIDE, O_LEAVES,
) = offsets("outward")[:7]  # fmt: skip


@jit
def outward(add, head_bytes, group_bytes, op, step, chunk, thread):
    """`unit` groups of columns that the active leaves give back, added to their tokens in the order of the leaves."""
    leaves, unit = op + O_LEAVES, load_i64(op + O_UNIT)
    first, groups = chunk * unit, load_i64(leaves + OUTWARD_GROUPS)
    stop = min(first + unit, groups)
    clear(leaves, load_i64(step + 8 * TOKENS), first, stop)
    y, y_stride = load_i64(leaves + SCRATCH) + thread * load_i64(leaves + SCRATCH_STRIDE), COLUMN_BYTES * groups
    h_stride = load_i64(op + O_HIDDEN_STRIDE)
    for tile in range(load_i64(step + 8 * EXPERT_TILES)):
        entry = load_i64(op + O_TILES) + 8 * len(EXPERT_TILE) * tile
        leaf, n = load_i64(entry + 8 * TILE_EXPERT), load_i64(entry + 8 * TILE_TOKENS)
        h, t = load_i64(op + O_HIDDEN) + TILE * tile * h_stride, 0
        for i in range(n):
            begin_output(leaves, leaf, y + i * y_stride, first, stop)
        while t + 4 <= n:
            add_rows_of_four(
                leaves, add, head_bytes, group_bytes, leaf, h + t * h_stride, h_stride, y + t * y_stride, y_stride,
                first, stop,
            )  # fmt: skip
            t += 4
        while t < n:
            add_rows(leaves, add, head_bytes, group_bytes, leaf, h + t * h_stride, y + t * y_stride, first, stop)
            t += 1
        for i in range(n):
            token = load_i64(load_i64(op + O_ROWS) + 8 * (TILE * tile + i))
            weight = load_f32(load_i64(op + O_ROW_WEIGHTS) + 4 * (TILE * tile + i))
            give_back(leaves, y + i * y_stride, token, weight, first, stop)


@kernel
def inward_f32(op, step, chunk, thread):
    inward(dot_f32, 0, GROUP_F32, op, step, chunk, thread)


@kernel
def outward_f32(op, step, chunk, thread):
    outward(add_f32, 0, GROUP_F32, op, step, chunk, thread)


@kernel
def inward_f16(op, step, chunk, thread):
    inward(dot_f16, 0, GROUP_F16, op, step, chunk, thread)


@kernel
def outward_f16(op, step, chunk, thread):
    outward(add_f16, 0, GROUP_F16, op, step, chunk, thread)


@kernel
def inward_bf16(op, step, chunk, thread):
    inward(dot_bf16, 0, GROUP_BF16, op, step, chunk, thread)


@kernel
def outward_bf16(op, step, chunk, thread):
    outward(add_bf16, 0, GROUP_BF16, op, step, chunk, thread)


@kernel
def inward_q8(op, step, chunk, thread):
    inward(dot_q8, 0, GROUP_Q8, op, step, chunk, thread)


@kernel
def outward_q8(op, step, chunk, thread):
    outward(add_q8, 0, GROUP_Q8, op, step, chunk, thread)


@kernel
def inward_q4(op, step, chunk, thread):
    inward(dot_q4, HEAD_Q4, GROUP_Q4, op, step, chunk, thread)


@kernel
def outward_q4(op, step, chunk, thread):
    outward(add_q4, HEAD_Q4, GROUP_Q4, op, step, chunk, thread)
