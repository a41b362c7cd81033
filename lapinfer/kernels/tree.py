"""Fast feedforward layers: descents through binary trees, and the narrow leaves that they end at.

A lone token's descent and leaves are one op of one chunk: they are a few microseconds of work. Several tokens descend
tile by tile and are sorted by leaf (kernels/sort.py), so that a leaf is read once for all of its tokens. Both add up
the same numbers in the same order. Leaves that are wide enough for blocks of 16 rows are experts like any others
(kernels/experts.py), and only the descent is done here.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.leaves import (
    ACTIVATION,
    BIAS,
    BIAS_STRIDE,
    COLUMN_BYTES,
    GROUP_BF16,
    GROUP_F16,
    GROUP_F32,
    GROUP_Q4,
    GROUP_Q8,
    HEAD_Q4,
    INWARD_GROUPS,
    IS_GATED,
    LEAF_WEIGHT,
    OUTWARD,
    OUTWARD_GROUPS,
    SCRATCH,
    SCRATCH_STRIDE,
    WIDTH,
    activations,
    add_rows,
    begin_output,
    clear,
    give_back,
    leaf_address,
    row_times,
    rows_times,
)
from lapinfer.kernels.operands import (
    ACTIVE_EXPERT,
    EXPERT,
    EXPERT_TILES,
    EXPERTS,
    NOT_A_NUMBER,
    SORT,
    TILE,
    TOKENS,
    TREE,
    offsets,
)
from lapinfer.kernels.route import note_problem
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
from lapinfer.kernels.simd import lane, load_f32, load_i64, reduce_sum, splat_f32, store_f32, store_i64, tile_of_2
from lapinfer.kernels.sort import (
    ACTIVE,
    CHOICES,
    CHOSEN,
    CHOSEN_STRIDE,
    DISTINCT,
    POSITION,
    ROUTED,
    SHARED,
    SHARED_WEIGHT,
    WEIGHT,
    last_of_step,
    sort_by_expert,
)
from lapinfer.kernels.vecmath import activate

(
    NODES, NODE_FORMAT, NODE_STRIDE, NODE_BIAS, NODE_OUT, NODE_OUT_BIAS, NODE_WIDTH, NODE_ACTIVATION, DEPTH, TREES,
    COLUMNS, COLUMN_STRIDE, COLUMN_GROUPS, PATH, PATH_STRIDE, DISTINCT_NODES,
) = (8 * i for i in range(len(TREE)))  # fmt: skip

F32, F16, BF16 = range(3)
"""Formats of nodes."""
f32 = np.float32


@jit
def four_parts_times(dot, group_bytes, w, x, groups):
    """A row · x, its four quarters side by side: it comes from memory alone, and as four streams comes faster."""
    a, b, c, d = tile_of_2(), tile_of_2(), tile_of_2(), tile_of_2()
    part = groups // 4
    w_part, x_part = part * group_bytes, part * COLUMN_BYTES
    for _ in range(part):
        a = dot(a, w, 0, (x,))
        b = dot(b, w + w_part, 0, (x + x_part,))
        c = dot(c, w + 2 * w_part, 0, (x + 2 * x_part,))
        d = dot(d, w + 3 * w_part, 0, (x + 3 * x_part,))
        w += group_bytes
        x += COLUMN_BYTES
    for _ in range(4 * part, groups):
        a = dot(a, w + 3 * w_part, 0, (x + 3 * x_part,))
        w += group_bytes
        x += COLUMN_BYTES
    return reduce_sum(((a[0] + a[1]) + (b[0] + b[1])) + ((c[0] + c[1]) + (d[0] + d[1])))


@jit
def node_row(tree, row, x, groups):
    """A node's row · x."""
    w = load_i64(tree + NODES) + row * load_i64(tree + NODE_STRIDE)
    kind = load_i64(tree + NODE_FORMAT)
    if kind == F32:
        return four_parts_times(dot_f32, GROUP_F32, w, x, groups)
    if kind == F16:
        return four_parts_times(dot_f16, GROUP_F16, w, x, groups)
    return four_parts_times(dot_bf16, GROUP_BF16, w, x, groups)


@jit
def node_logit(tree, node, x, groups):
    """A node's logit: its row · x (+ bias), or of a network of several neurons."""
    bias, width = load_i64(tree + NODE_BIAS), load_i64(tree + NODE_WIDTH)
    if width == 1:
        logit = node_row(tree, node, x, groups)
        return logit if bias == 0 else logit + load_f32(bias + 4 * node)
    logit = load_f32(load_i64(tree + NODE_OUT_BIAS) + 4 * node)
    for n in range(node * width, node * width + width):
        value = node_row(tree, n, x, groups)
        if bias != 0:
            value += load_f32(bias + 4 * n)
        value = lane(activate(load_i64(tree + NODE_ACTIVATION), splat_f32(value)), 0)
        logit += value * load_f32(load_i64(tree + NODE_OUT) + 4 * n)
    return logit


@jit
def descend_trees(sort, tree, step, weight, groups, t):
    """The leaf of every tree for token t, and the logits on the way."""
    depth, x = load_i64(tree + DEPTH), load_i64(tree + COLUMNS) + t * load_i64(tree + COLUMN_STRIDE)
    nodes, leaves = (1 << depth) - 1, 1 << depth
    at = t * load_i64(sort + CHOSEN_STRIDE)
    chosen, weights = load_i64(sort + CHOSEN) + 8 * at, load_i64(sort + WEIGHT) + 4 * at
    path = load_i64(tree + PATH) + t * load_i64(tree + PATH_STRIDE)
    for i in range(load_i64(tree + TREES)):
        node = 0
        for _ in range(depth):
            logit = node_logit(tree, i * nodes + node, x, groups)
            if not abs(logit) < f32(np.inf):
                note_problem(step, load_i64(sort + POSITION), NOT_A_NUMBER)
            store_f32(path, logit)
            path += 4
            node = 2 * node + (2 if logit >= f32(0.0) else 1)
        store_i64(chosen + 8 * i, i * leaves + node - nodes)
        store_f32(weights + 4 * i, weight)


@jit
def nodes_of_leaves(sort, tree, routed):
    """How many different nodes lie above the active leaves, which are in order.

    A leaf adds the nodes below where its path leaves that of the leaf before it.
    """
    depth, active = load_i64(tree + DEPTH), load_i64(sort + ACTIVE)
    total, before = 0, -1
    for i in range(routed):
        leaf = load_i64(active + 8 * (len(ACTIVE_EXPERT) * i + EXPERT))
        if before < 0 or leaf >> depth != before >> depth:
            total += depth
        else:
            differ = (leaf ^ before) >> 1
            while differ > 0:
                total += 1
                differ >>= 1
        before = leaf
    return total


D_SORT, D_TREE, D_LEAF_WEIGHT = (offsets("descend")[i] for i in (0, len(SORT), len(SORT) + len(TREE)))


@kernel
def descend(op, step, chunk, thread):
    """The leaves of a tile of tokens; the last one to finish sorts them all."""
    sort, tree, weight = op + D_SORT, op + D_TREE, load_f32(op + D_LEAF_WEIGHT)
    groups = load_i64(tree + COLUMN_GROUPS)
    for t in range(chunk * TILE, min(chunk * TILE + TILE, load_i64(step + 8 * TOKENS))):
        descend_trees(sort, tree, step, weight, groups, t)
    if last_of_step(sort, step):
        routed = sort_by_expert(sort, step)
        store_i64(load_i64(tree + DISTINCT_NODES), nodes_of_leaves(sort, tree, routed))


T_SORT, T_TREE, T_LEAVES = (offsets("tree")[i] for i in (0, len(SORT), len(SORT) + len(TREE)))


@jit
def lone(sort, tree, step):
    """What ops behind an op for a lone token find in the header: that there is nothing left to do."""
    choices = load_i64(sort + CHOICES)
    store_i64(load_i64(sort + DISTINCT), choices + load_i64(sort + SHARED))
    store_i64(load_i64(tree + DISTINCT_NODES), load_i64(tree + TREES) * load_i64(tree + DEPTH))
    store_i64(step + 8 * EXPERTS, 0)
    store_i64(step + 8 * EXPERT_TILES, 0)


@jit
def tree(dot, add, head_bytes, group_bytes, op, step, thread):
    """Descent and leaves of a lone token."""
    sort, nodes, leaves = op + T_SORT, op + T_TREE, op + T_LEAVES
    inward_groups, outward_groups = load_i64(leaves + INWARD_GROUPS), load_i64(leaves + OUTWARD_GROUPS)
    descend_trees(sort, nodes, step, load_f32(leaves + LEAF_WEIGHT), inward_groups, 0)
    lone(sort, nodes, step)
    clear(leaves, 1, 0, outward_groups)
    y = load_i64(leaves + SCRATCH) + thread * load_i64(leaves + SCRATCH_STRIDE)
    h, x = y + COLUMN_BYTES * outward_groups, load_i64(nodes + COLUMNS)
    rows = load_i64(leaves + WIDTH) << load_i64(leaves + IS_GATED)
    choices = load_i64(sort + CHOICES)
    whole = load_i64(leaves + OUTWARD) + load_i64(leaves + WIDTH) * (head_bytes + outward_groups * group_bytes)
    for i in range(choices + load_i64(sort + SHARED)):
        leaf = load_i64(sort + ROUTED) + i - choices
        weight = load_f32(sort + SHARED_WEIGHT)
        if i < choices:
            leaf, weight = load_i64(load_i64(sort + CHOSEN) + 8 * i), load_f32(leaves + LEAF_WEIGHT)
        rows_times(dot, head_bytes, group_bytes, leaf_address(leaves, leaf), rows, x, inward_groups, h, whole)
        activations(leaves, head_bytes, leaf, h)
        begin_output(leaves, leaf, y, 0, outward_groups)
        add_rows(leaves, add, head_bytes, group_bytes, leaf, h, y, 0, outward_groups)
        give_back(leaves, y, 0, weight, 0, outward_groups)


# ---- neurons as nodes ----


@jit
def neuron_path(dot, head_bytes, group_bytes, sort, nodes, leaves, step, t):
    """The neurons on token t's way down every tree (UltraFastBERT): chosen, and their logits."""
    x, groups = load_i64(nodes + COLUMNS) + t * load_i64(nodes + COLUMN_STRIDE), load_i64(leaves + INWARD_GROUPS)
    depth, bias, at = load_i64(nodes + DEPTH), load_i64(leaves + BIAS), t * load_i64(sort + CHOSEN_STRIDE)
    chosen, weights = load_i64(sort + CHOSEN) + 8 * at, load_i64(sort + WEIGHT) + 4 * at
    path = load_i64(nodes + PATH) + t * load_i64(nodes + PATH_STRIDE)
    for i in range(load_i64(nodes + TREES)):
        first, node = i * ((2 << depth) - 1), 0
        for _ in range(depth + 1):
            logit = row_times(dot, head_bytes, group_bytes, leaf_address(leaves, first + node), x, groups)
            if bias != 0:
                logit += load_f32(bias + (first + node) * load_i64(leaves + BIAS_STRIDE))
            if not abs(logit) < f32(np.inf):
                note_problem(step, load_i64(sort + POSITION), NOT_A_NUMBER)
            store_f32(path, logit)
            store_i64(chosen, first + node)
            store_f32(weights, load_f32(leaves + LEAF_WEIGHT))
            path, chosen, weights = path + 4, chosen + 8, weights + 4
            node = 2 * node + (2 if logit > f32(0.0) else 1)


@jit
def neurons(dot, add, head_bytes, group_bytes, op, step, chunk, thread):
    """The neurons on the paths of a tile of tokens; a lone token's are added up at once, others are sorted."""
    sort, nodes, leaves = op + T_SORT, op + T_TREE, op + T_LEAVES
    tokens = load_i64(step + 8 * TOKENS)
    for t in range(chunk * TILE, min(chunk * TILE + TILE, tokens)):
        neuron_path(dot, head_bytes, group_bytes, sort, nodes, leaves, step, t)
    if tokens > 1:
        if last_of_step(sort, step):
            sort_by_expert(sort, step)
            store_i64(load_i64(nodes + DISTINCT_NODES), 0)
        return
    lone(sort, nodes, step)
    store_i64(load_i64(nodes + DISTINCT_NODES), 0)
    groups = load_i64(leaves + OUTWARD_GROUPS)
    clear(leaves, 1, 0, groups)
    y = load_i64(leaves + SCRATCH) + thread * load_i64(leaves + SCRATCH_STRIDE)
    h = y + COLUMN_BYTES * groups
    for i in range(load_i64(sort + CHOICES)):
        neuron = load_i64(load_i64(sort + CHOSEN) + 8 * i)
        # With the bias, which `activations` would add again.
        logit = load_f32(load_i64(nodes + PATH) + 4 * i)
        store_f32(h, lane(activate(load_i64(leaves + ACTIVATION), splat_f32(logit)), 0))
        if head_bytes != 0:
            unit = load_f32(leaf_address(leaves, neuron) + load_i64(leaves + OUTWARD))
            store_f32(h, load_f32(h) * unit)
        begin_output(leaves, neuron, y, 0, groups)
        add_rows(leaves, add, head_bytes, group_bytes, neuron, h, y, 0, groups)
        give_back(leaves, y, 0, load_f32(leaves + LEAF_WEIGHT), 0, groups)


@kernel
def tree_f32(op, step, chunk, thread):
    tree(dot_f32, add_f32, 0, GROUP_F32, op, step, thread)


@kernel
def neurons_f32(op, step, chunk, thread):
    neurons(dot_f32, add_f32, 0, GROUP_F32, op, step, chunk, thread)


@kernel
def tree_f16(op, step, chunk, thread):
    tree(dot_f16, add_f16, 0, GROUP_F16, op, step, thread)


@kernel
def neurons_f16(op, step, chunk, thread):
    neurons(dot_f16, add_f16, 0, GROUP_F16, op, step, chunk, thread)


@kernel
def tree_bf16(op, step, chunk, thread):
    tree(dot_bf16, add_bf16, 0, GROUP_BF16, op, step, thread)


@kernel
def neurons_bf16(op, step, chunk, thread):
    neurons(dot_bf16, add_bf16, 0, GROUP_BF16, op, step, chunk, thread)


@kernel
def tree_q8(op, step, chunk, thread):
    tree(dot_q8, add_q8, 0, GROUP_Q8, op, step, thread)


@kernel
def neurons_q8(op, step, chunk, thread):
    neurons(dot_q8, add_q8, 0, GROUP_Q8, op, step, chunk, thread)


@kernel
def tree_q4(op, step, chunk, thread):
    tree(dot_q4, add_q4, HEAD_Q4, GROUP_Q4, op, step, thread)


@kernel
def neurons_q4(op, step, chunk, thread):
    neurons(dot_q4, add_q4, HEAD_Q4, GROUP_Q4, op, step, chunk, thread)
