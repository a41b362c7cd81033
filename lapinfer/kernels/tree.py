"""Fast feedforward layers: descents through binary trees, and the narrow leaves that they end at.

A lone token's descent and leaves are one op of one chunk: they are a few microseconds of work. Several tokens descend
tile by tile and are sorted by leaf (kernels/sort.py), so that a leaf is read once for all of its tokens. Both add up
the same numbers in the same order. Leaves that are wide enough for blocks of 16 rows are experts like any others
(kernels/experts.py), and only the descent is done here.
"""

import numpy as np

from lapinfer.kernels.cache import jit, kernel
from lapinfer.kernels.leaves import (
    COLUMN_BYTES,
    activations,
    add_rows,
    begin_output,
    clear,
    give_back,
    leaf_address,
    row_times,
    rows_times,
)
from lapinfer.kernels.operands import NOT_A_NUMBER, TILE
from lapinfer.kernels.problem import note_problem
from lapinfer.kernels.register_tiles import tile_of_2
from lapinfer.kernels.rows import NODES, ROWS
from lapinfer.kernels.simd import (
    lane,
    load_f32,
    load_i64,
    reduce_sum,
    splat_f32,
    store_f32,
    store_i64,
)
from lapinfer.kernels.sort import last_of_step, sort_by_expert
from lapinfer.kernels.stamp import chained, stamped
from lapinfer.kernels.vecmath import activate

f32 = np.float32


@jit
def four_parts_times(W, w, x, groups):
    """A row · x, its four quarters side by side: it comes from memory alone, and as four streams comes faster."""
    a, b, c, d = tile_of_2(), tile_of_2(), tile_of_2(), tile_of_2()
    part = groups // 4
    w_part, x_part = part * W.group_bytes, part * COLUMN_BYTES
    for _ in range(part):
        a = W.dot(a, w, 0, (x,))
        b = W.dot(b, w + w_part, 0, (x + x_part,))
        c = W.dot(c, w + 2 * w_part, 0, (x + 2 * x_part,))
        d = W.dot(d, w + 3 * w_part, 0, (x + 3 * x_part,))
        w += W.group_bytes
        x += COLUMN_BYTES
    for _ in range(4 * part, groups):
        a = W.dot(a, w + 3 * w_part, 0, (x + 3 * x_part,))
        w += W.group_bytes
        x += COLUMN_BYTES
    return reduce_sum(((a[0] + a[1]) + (b[0] + b[1])) + ((c[0] + c[1]) + (d[0] + d[1])))


@chained(NODES)
def node_row(W, tree, row, x, groups):
    """A node's row · x, in whatever format nodes have."""
    if tree.node_format == W.id:
        return four_parts_times(W, tree.nodes + row * tree.node_stride, x, groups)
    return W.otherwise(tree, row, x, groups)


@jit
def node_logit(tree, node, x, groups):
    """A node's logit: its row · x (+ bias), or of a network of several neurons."""
    bias, width = tree.node_bias, tree.node_width
    if width == 1:
        logit = node_row(tree, node, x, groups)
        return logit if bias == 0 else logit + load_f32(bias + 4 * node)
    logit = load_f32(tree.node_out_bias + 4 * node)
    for n in range(node * width, node * width + width):
        value = node_row(tree, n, x, groups)
        if bias != 0:
            value += load_f32(bias + 4 * n)
        value = lane(activate(tree.node_activation, splat_f32(value)), 0)
        logit += value * load_f32(tree.node_out + 4 * n)
    return logit


@jit
def descend_trees(sort, tree, step, weight, groups, t):
    """The leaf of every tree for token t, and the logits on the way."""
    depth, x = tree.depth, tree.columns + t * tree.column_stride
    nodes, leaves = (1 << depth) - 1, 1 << depth
    first = t * sort.chosen_stride
    chosen, weights = sort.chosen + 8 * first, sort.weight + 4 * first
    path = tree.path + t * tree.path_stride
    for i in range(tree.trees):
        node = 0
        for _ in range(depth):
            logit = node_logit(tree, i * nodes + node, x, groups)
            if not abs(logit) < f32(np.inf):
                note_problem(step, sort.position, NOT_A_NUMBER)
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
    depth = tree.depth
    total, before = 0, -1
    for i in range(routed):
        leaf = sort.active[i].expert
        if before < 0 or leaf >> depth != before >> depth:
            total += depth
        else:
            differ = (leaf ^ before) >> 1
            while differ > 0:
                total += 1
                differ >>= 1
        before = leaf
    return total


@kernel
def descend(o, step, chunk, thread):
    """The leaves of a tile of tokens; the last one to finish sorts them all."""
    for t in range(chunk * TILE, min(chunk * TILE + TILE, step.tokens)):
        descend_trees(o.sort, o.tree, step, o.leaf_weight, o.tree.column_groups, t)
    if last_of_step(o.sort, step):
        routed = sort_by_expert(o.sort, step)
        store_i64(o.tree.distinct_nodes, nodes_of_leaves(o.sort, o.tree, routed))


@jit
def lone(sort, tree, step):
    """What ops after an op for a lone token find in the header: that there is nothing left to do."""
    store_i64(sort.distinct, sort.choices + sort.shared)
    store_i64(tree.distinct_nodes, tree.trees * tree.depth)
    step.experts = 0
    step.expert_tiles = 0


@stamped(ROWS)
def tree(W, o, step, chunk, thread):
    """Descent and leaves of a lone token."""
    sort, nodes, leaves = o.sort, o.tree, o.leaves
    inward_groups, outward_groups = leaves.inward_groups, leaves.outward_groups
    descend_trees(sort, nodes, step, leaves.leaf_weight, inward_groups, 0)
    lone(sort, nodes, step)
    clear(leaves, 1, 0, outward_groups)
    y = leaves.scratch + thread * leaves.scratch_stride
    h, x = y + COLUMN_BYTES * outward_groups, nodes.columns
    rows = leaves.width << leaves.gated
    choices = sort.choices
    leaf_bytes = leaves.outward + leaves.width * (W.head_bytes + outward_groups * W.group_bytes)
    for i in range(choices + sort.shared):
        leaf = sort.routed + i - choices
        weight = sort.shared_weight
        if i < choices:
            leaf, weight = load_i64(sort.chosen + 8 * i), leaves.leaf_weight
        rows_times(W, leaf_address(leaves, leaf), rows, x, inward_groups, h, leaf_bytes)
        activations(W, leaves, leaf, h)
        begin_output(leaves, leaf, y, 0, outward_groups)
        add_rows(W, leaves, leaf, h, y, 0, outward_groups)
        give_back(leaves, y, 0, weight, 0, outward_groups)


# ---- neurons as nodes ----


@jit
def neuron_path(W, sort, nodes, leaves, step, t):
    """The neurons on token t's way down every tree (UltraFastBERT): chosen, and their logits."""
    x, groups = nodes.columns + t * nodes.column_stride, leaves.inward_groups
    depth, bias, start = nodes.depth, leaves.bias, t * sort.chosen_stride
    chosen, weights = sort.chosen + 8 * start, sort.weight + 4 * start
    path = nodes.path + t * nodes.path_stride
    for i in range(nodes.trees):
        first, node = i * ((2 << depth) - 1), 0
        for _ in range(depth + 1):
            logit = row_times(W, leaf_address(leaves, first + node), x, groups)
            if bias != 0:
                logit += load_f32(bias + (first + node) * leaves.bias_stride)
            if not abs(logit) < f32(np.inf):
                note_problem(step, sort.position, NOT_A_NUMBER)
            store_f32(path, logit)
            store_i64(chosen, first + node)
            store_f32(weights, leaves.leaf_weight)
            path, chosen, weights = path + 4, chosen + 8, weights + 4
            node = 2 * node + (2 if logit > f32(0.0) else 1)


@stamped(ROWS)
def neurons(W, o, step, chunk, thread):
    """The neurons on the paths of a tile of tokens; a lone token's are added up at once, others are sorted."""
    sort, nodes, leaves = o.sort, o.tree, o.leaves
    tokens = step.tokens
    for t in range(chunk * TILE, min(chunk * TILE + TILE, tokens)):
        neuron_path(W, sort, nodes, leaves, step, t)
    if tokens > 1:
        if last_of_step(sort, step):
            sort_by_expert(sort, step)
            store_i64(nodes.distinct_nodes, 0)
        return
    lone(sort, nodes, step)
    store_i64(nodes.distinct_nodes, 0)
    groups = leaves.outward_groups
    clear(leaves, 1, 0, groups)
    y = leaves.scratch + thread * leaves.scratch_stride
    h = y + COLUMN_BYTES * groups
    for i in range(sort.choices):
        neuron = load_i64(sort.chosen + 8 * i)
        # With the bias, which `activations` would add again.
        logit = load_f32(nodes.path + 4 * i)
        store_f32(h, lane(activate(leaves.activation, splat_f32(logit)), 0))
        if W.head_bytes != 0:
            unit = load_f32(leaf_address(leaves, neuron) + leaves.outward)
            store_f32(h, load_f32(h) * unit)
        begin_output(leaves, neuron, y, 0, groups)
        add_rows(W, leaves, neuron, h, y, 0, groups)
        give_back(leaves, y, 0, leaves.leaf_weight, 0, groups)
