"""Narrow leaves of fast feedforward layers, neuron by neuron: their rows times tokens, and what they give back.

Leaves that are wide enough for blocks of 16 rows are experts like any others (kernels/experts.py).
"""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import STORE, TILE
from lapinfer.kernels.register_tiles import tile_of_2, tile_of_8, tile_of_16
from lapinfer.kernels.rows import ROWS
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
    where_less,
)
from lapinfer.kernels.stamp import stamped
from lapinfer.kernels.vecmath import activate, gated
from lapinfer.quant import GROUP

COLUMN_BYTES = 4 * GROUP
TOGETHER = 8
"""Neurons whose outward rows are read side by side: as many streams as a processor follows with ease."""
f32 = np.float32


@jit
def row_times(W, w, x, groups):
    """One row · one token."""
    acc, group = tile_of_2(), w + W.head_bytes
    for _ in range(groups):
        acc = W.dot(acc, group, 0, (x,))
        group += W.group_bytes
        x += COLUMN_BYTES
    total = reduce_sum(acc[0] + acc[1])
    return total if W.head_bytes == 0 else total * load_f32(w)


@jit
def four_rows_times(W, w, x, groups, out, ahead, pace):
    """The same for four neighbouring rows -> out [4]; with each group, asks for `pace` bytes of `ahead`."""
    acc, group, stride = tile_of_8(), w + W.head_bytes, W.head_bytes + groups * W.group_bytes
    for _ in range(groups):
        for line in range(0, pace, 64):
            ask(ahead + line)
        ahead += pace
        acc = W.dot(acc, group, stride, (x,))
        group += W.group_bytes
        x += COLUMN_BYTES
    store_f32(out, reduce_sum(acc[0] + acc[1]))
    store_f32(out + 4, reduce_sum(acc[2] + acc[3]))
    store_f32(out + 8, reduce_sum(acc[4] + acc[5]))
    store_f32(out + 12, reduce_sum(acc[6] + acc[7]))
    if W.head_bytes != 0:
        for r in range(4):
            store_f32(out + 4 * r, load_f32(out + 4 * r) * load_f32(w + r * stride))


@jit
def two_rows_times_four(W, w, x0, x1, x2, x3, groups, out, out_stride):
    """Two rows · four tokens -> out[token] [2]."""
    acc, group, stride = tile_of_16(), w + W.head_bytes, W.head_bytes + groups * W.group_bytes
    for g in range(0, COLUMN_BYTES * groups, COLUMN_BYTES):
        acc = W.dot(acc, group, stride, (x0 + g, x1 + g, x2 + g, x3 + g))
        group += W.group_bytes
    unit0, unit1 = f32(1.0), f32(1.0)
    if W.head_bytes != 0:
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
def rows_times(W, w, rows, x, groups, out, read_once):
    """All rows · one token -> out [rows].

    read_once: bytes from w on that are read once, now or soon after, or 0. What lies after the first rows is asked for
    while they are multiplied: a few kilobytes at a new place are over before the processor sees a stream in them.
    """
    stride, r = W.head_bytes + groups * W.group_bytes, 0
    pace = max(read_once - 4 * stride, 0) // max((rows // 4) * groups, 1)
    while r + 4 <= rows:
        ahead = w + 4 * stride + (r // 4) * groups * pace
        four_rows_times(W, w + r * stride, x, groups, out + 4 * r, ahead, pace)
        r += 4
    while r < rows:
        store_f32(out + 4 * r, row_times(W, w + r * stride, x, groups))
        r += 1


# ---- leaves ----


@jit
def leaf_address(leaves, leaf):
    return leaves.leaves + leaf * leaves.leaf_stride


@jit
def activations(W, leaves, leaf, h):
    """Bias and activation of a leaf's first sums, in place: h [(2)F] -> [F], times the units of the rows back."""
    width, kind, is_gated = leaves.width, leaves.activation, leaves.gated != 0
    bias = leaves.bias
    if bias != 0:
        bias += leaf * leaves.bias_stride
        for r in range(width + (width if is_gated else 0)):
            store_f32(h + 4 * r, load_f32(h + 4 * r) + load_f32(bias + 4 * r))
    for r in range(0, width, 16):  # lanes after the last are room that nobody reads
        value = load_f32x16(h + 4 * r)
        other = load_f32x16(h + 4 * (width + r))
        store_f32x16(h + 4 * r, gated(kind, value, other) if is_gated else activate(kind, value))
    if W.head_bytes != 0:
        stride = leaves.outward_groups * W.group_bytes + W.head_bytes
        unit = leaf_address(leaves, leaf) + leaves.outward
        for r in range(width):
            store_f32(h + 4 * r, load_f32(h + 4 * r) * load_f32(unit + r * stride))


@jit
def begin_output(leaves, leaf, out, first, stop):
    """out[groups first … stop] = the leaf's second bias, or zeros."""
    bias = leaves.outward_bias
    if bias != 0:
        bias += leaf * leaves.outward_bias_stride
    for column in range(COLUMN_BYTES * first, COLUMN_BYTES * stop, 64):
        store_f32x16(out + column, splat_f32(f32(0.0)) if bias == 0 else load_f32x16(bias + column))


@jit
def add_rows(W, leaves, leaf, h, out, first, stop):
    """out[groups first … stop] += Σ h · row of one token."""
    stride, width = W.head_bytes + leaves.outward_groups * W.group_bytes, leaves.width
    w = leaf_address(leaves, leaf) + leaves.outward + W.head_bytes
    for low in range(0, width, TOGETHER):
        high = min(low + TOGETHER, width)
        for g in range(first, stop):
            sums = out + COLUMN_BYTES * g
            acc = (load_f32x16(sums), load_f32x16(sums + 64))
            for r in range(low, high):
                acc = W.add(acc, w + r * stride + g * W.group_bytes, (load_f32(h + 4 * r),))
            store_f32x16(sums, acc[0])
            store_f32x16(sums + 64, acc[1])


@jit
def add_rows_of_four(W, leaves, leaf, h, h_stride, out, out_stride, first, stop):
    """The same for four tokens, whose rows of h and out lie a stride apart."""
    stride, width = W.head_bytes + leaves.outward_groups * W.group_bytes, leaves.width
    w = leaf_address(leaves, leaf) + leaves.outward + W.head_bytes
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
                own = h + 4 * r
                factors = (
                    load_f32(own), load_f32(own + h_stride), load_f32(own + 2 * h_stride), load_f32(own + 3 * h_stride),
                )  # fmt: skip
                acc = W.add(acc, w + r * stride + g * W.group_bytes, factors)
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
    """out[token] += scale · weight · y in the groups first … stop; columns after the last stay as they are."""
    factor = splat_f32(leaves.scale * weight)
    out, width = leaves.out + token * leaves.out_stride, leaves.out_width
    for column in range(GROUP * first, GROUP * stop, 16):
        value = load_f32x16(y + 4 * column)
        if column + 16 > width:
            inside = splat_f32(f32(width - column))
            value = where_less(iota(), inside, value, splat_f32(f32(0.0)))
        place = out + 4 * column
        store_f32x16(place, fma(value, factor, load_f32x16(place)))


@jit
def clear(leaves, tokens, first, stop):
    """out = 0, where it is not added to."""
    if leaves.mode == STORE:
        for t in range(tokens):
            out = leaves.out + t * leaves.out_stride
            for column in range(COLUMN_BYTES * first, COLUMN_BYTES * stop, 64):
                store_f32x16(out + column, splat_f32(f32(0.0)))


# ---- leaves of several tokens ----


@stamped(ROWS)
def inward(W, o, step, chunk, thread):
    """The first neurons of an active leaf, for its tokens, activated."""
    leaves, active = o.leaves, o.active[chunk]
    leaf, groups = active.expert, leaves.inward_groups
    w, rows = leaf_address(leaves, leaf), leaves.width << leaves.gated
    h_stride, row_bytes = o.hidden_stride, W.head_bytes + groups * W.group_bytes
    columns, stride = o.columns, o.column_stride
    for tile in range(active.first_tile, active.stop_tile):
        n = o.tiles[tile].tokens
        tokens, h = o.rows + 8 * TILE * tile, o.hidden + TILE * tile * h_stride
        t = 0
        while t + 4 <= n:
            x0 = columns + load_i64(tokens + 8 * t) * stride
            x1 = columns + load_i64(tokens + 8 * t + 8) * stride
            x2 = columns + load_i64(tokens + 8 * t + 16) * stride
            x3 = columns + load_i64(tokens + 8 * t + 24) * stride
            out = h + t * h_stride
            for r in range(0, rows - 1, 2):
                two_rows_times_four(W, w + r * row_bytes, x0, x1, x2, x3, groups, out + 4 * r, h_stride)
            if rows % 2 == 1:
                last, out = w + (rows - 1) * row_bytes, out + 4 * (rows - 1)
                store_f32(out, row_times(W, last, x0, groups))
                store_f32(out + h_stride, row_times(W, last, x1, groups))
                store_f32(out + 2 * h_stride, row_times(W, last, x2, groups))
                store_f32(out + 3 * h_stride, row_times(W, last, x3, groups))
            t += 4
        while t < n:
            x = columns + load_i64(tokens + 8 * t) * stride
            rows_times(W, w, rows, x, groups, h + t * h_stride, 0)
            t += 1
        for t in range(n):
            activations(W, leaves, leaf, h + t * h_stride)


@stamped(ROWS)
def outward(W, o, step, chunk, thread):
    """`unit` groups of columns that the active leaves give back, added to their tokens in the order of the leaves."""
    leaves, unit = o.leaves, o.unit
    first, groups = chunk * unit, leaves.outward_groups
    stop = min(first + unit, groups)
    clear(leaves, step.tokens, first, stop)
    y, y_stride = leaves.scratch + thread * leaves.scratch_stride, COLUMN_BYTES * groups
    h_stride = o.hidden_stride
    for tile in range(step.expert_tiles):
        entry = o.tiles[tile]
        leaf, n = entry.expert, entry.tokens
        h, t = o.hidden + TILE * tile * h_stride, 0
        for i in range(n):
            begin_output(leaves, leaf, y + i * y_stride, first, stop)
        while t + 4 <= n:
            add_rows_of_four(W, leaves, leaf, h + t * h_stride, h_stride, y + t * y_stride, y_stride, first, stop)
            t += 4
        while t < n:
            add_rows(W, leaves, leaf, h + t * h_stride, y + t * y_stride, first, stop)
            t += 1
        for i in range(n):
            token = load_i64(o.rows + 8 * (TILE * tile + i))
            weight = load_f32(o.row_weights + 4 * (TILE * tile + i))
            give_back(leaves, y + i * y_stride, token, weight, first, stop)
