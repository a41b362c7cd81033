"""The ops of fast feedforward layers: the descent, and leaves that are stored neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lapinfer.kernels.operands import ACT_F32, ACTIVATIONS, CROWD, CROWD_TILES, EXPERTS, LONE, TILES, KernelId
from lapinfer.quant import GROUP
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import row_bytes
from lapinfer.runtime.cost import FREE, Cost, Steps
from lapinfer.runtime.ops import Ops
from lapinfer.runtime.sizes import padded
from lapinfer.spec import FeedForwardSpec, NormSpec, RouterSpec, TreeSpec

OUTWARD_CHUNKS = 8
"""Chunks that the columns of several tokens' results are divided into, if they have at least as many groups."""


@dataclass(frozen=True, slots=True)
class Before:
    """The norm before a feed-forward, and its name in the layer. again: attention has read its weights already."""

    norm: NormSpec | None
    name: str = "ff_norm"
    again: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a feed-forward's result goes: out (+)= scale · result, float32 [T, ≥ width]."""

    out: np.ndarray
    mode: int
    width: int
    scale: float = 1.0


def sort_operands(
    build: Ops, index: int, ff: FeedForwardSpec, tile_bytes: int, x: np.ndarray | int, gate: int = 0,
    shared_weight: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Operands for sorting tokens by expert. gate: address of the first token's logit for the shared experts."""
    routing, router = build.routing, ff.router
    assert router is not None
    position = routing.position(index)
    return {
        "routed": router.n_experts, "choices": router.top_k, "shared": ff.shared, "shared_weight": shared_weight,
        "shared_gate": gate, "gate_stride": routing.logits.strides[0], "chosen": routing.chosen[position],
        "chosen_stride": routing.chosen.shape[2], "weight": routing.weight[position], "position": position,
        "finished": routing.finished, "counts": routing.counts, "active": routing.active, "tiles": routing.tiles,
        "rows": routing.rows, "row_weights": routing.row_weights, "x": x, "tile_bytes": tile_bytes,
        "gathered": routing.gathered, "distinct": routing.distinct[position : position + 1],
    }  # fmt: skip


def mix_weights(build: Ops, index: int, tree: TreeSpec) -> tuple[float, float]:
    """The weights of leaves and of shared experts."""
    if not tree.mix:
        return 1.0, 1.0
    k = float(build.weights.tensor(f"layers.{index}.mix")[0])
    leaf = 1.0 / (1.0 + np.exp(-k))
    return leaf, 1.0 - leaf


def _tree_operands(build: Ops, index: int, tree: TreeSpec, columns: np.ndarray) -> dict[str, Any]:
    routing, p = build.routing, f"layers.{index}."
    position, N = routing.position(index), tree.trees * tree.nodes
    nodes: np.ndarray | int = 0
    fmt, stride, bias, out, out_bias = 0, 0, 0, 0, 0
    if tree.path:
        nodes = build.weights.tensor(p + "nodes")
        fmt, stride = FORMATS[build.format(p + "nodes")].id, nodes.strides[0]
        bias = build.vector(p + "nodes.bias", N * tree.node_width) if tree.node_bias else 0
        if tree.node_width > 1:
            out = np.ascontiguousarray(build.weights.tensor(p + "node_out"))
            out_bias = build.vector(p + "node_out.bias", N)
    return {
        "nodes": nodes, "node_format": fmt, "node_stride": stride, "node_bias": bias, "node_out": out,
        "node_out_bias": out_bias, "node_width": tree.node_width,
        "node_activation": ACTIVATIONS.index(tree.node_activation), "depth": tree.depth, "trees": tree.trees,
        "columns": columns, "column_stride": columns.strides[0], "column_groups": padded(build.hidden) // GROUP,
        "path": routing.path[position],
        "path_stride": routing.path.strides[1], "distinct_nodes": routing.nodes[position : position + 1],
    }  # fmt: skip


def node_bytes(build: Ops, index: int, tree: TreeSpec) -> int:
    """Bytes that one node's decision reads."""
    n = tree.node_width
    scalars = 4 * n * tree.node_bias + (4 * n + 4 if n > 1 else 0)
    return n * row_bytes(build.format(f"layers.{index}.nodes"), build.hidden) + scalars


def _descent_cost(build: Ops, index: int, tree: TreeSpec, steps: Steps) -> Cost:
    """What a descent reads: a path of nodes per token, each node once per step."""
    if not tree.path:
        return FREE
    n = tree.node_width
    return Cost(
        macs=tree.path * n * (build.hidden + (n > 1)), routed=build.routing.position(index),
        node_bytes=node_bytes(build, index, tree), steps=steps,
    )  # fmt: skip


def _nodes_shape(build: Ops, tree: TreeSpec) -> str:
    return f"{tree.trees * tree.nodes * tree.node_width} × {build.hidden}" if tree.path else ""


def descend(
    build: Ops, index: int, ff: FeedForwardSpec, tree: TreeSpec, columns: np.ndarray, tile_bytes: int = 0,
    crowd: bool = False,
) -> None:  # fmt: skip
    """The leaf of each tree for every token, and the tokens sorted by leaf; crowd: only in steps of several tokens.

    columns: float32 [T, ≥ D] that decisions are made by. tile_bytes: of the tiles that leaves multiply, if they do.
    """
    leaf, shared = mix_weights(build, index, tree)
    build.add(
        "descend", "descend", "router", index, CROWD_TILES if crowd else TILES, 1,
        **sort_operands(build, index, ff, tile_bytes, build.tiles, shared_weight=shared),
        **_tree_operands(build, index, tree, columns),
        leaf_weight=leaf, cost=_descent_cost(build, index, tree, "several" if crowd else "all"),
        shape=_nodes_shape(build, tree),
    )  # fmt: skip


def narrow_leaves(
    build: Ops, index: int, ff: FeedForwardSpec, router: RouterSpec | TreeSpec, before: Before, target: Target
) -> None:
    """Descent and leaves: one op for a lone token; for several tokens, descent, first neurons, and what they return."""
    assert isinstance(router, TreeSpec)
    tree, routing, p = router, build.routing, f"layers.{index}."
    fmt, groups = build.format(p + "leaves.inward"), padded(target.width) // GROUP
    columns = build.x
    if before.norm is not None or target.out is build.x:  # leaves must not read what other leaves have added
        columns = routing.exact
        build.norm_of(
            build.x, p + before.name, before.norm, build.hidden, index, "router", ACT_F32, exact=columns, out=0,
            again=before.again,
        )  # fmt: skip
    leaf_weight, shared_weight = mix_weights(build, index, tree)
    leaves = _leaf_operands(build, index, ff, target, leaf_weight)
    sort = sort_operands(build, index, ff, 0, 0, shared_weight=shared_weight)
    descent: dict[str, Any] = {**sort, **_tree_operands(build, index, tree, columns)}
    inward, outward = _leaf_costs(build, index, ff, target)
    descent_cost = _descent_cost(build, index, tree, "lone")
    both = replace(
        inward, macs=descent_cost.macs + inward.macs + outward.macs, node_bytes=descent_cost.node_bytes,
        expert_bytes=inward.expert_bytes + outward.expert_bytes, steps="lone",
    )  # fmt: skip
    rows = (1 + ff.gated) * ff.width
    shape = f"{rows} × {build.hidden}"
    if tree.neurons:
        build.add(
            KernelId("neurons", fmt), "neurons", "experts", index, TILES, 1, **descent, **leaves,
            cost=both, shape=shape,
        )  # fmt: skip
    else:
        build.add(
            KernelId("tree", fmt), "tree", "experts", index, LONE, 1, **descent, **leaves,
            cost=both, shape=shape,
        )  # fmt: skip
        descend(build, index, ff, tree, columns, crowd=True)
    hidden: dict[str, Any] = {
        "tiles": routing.tiles, "rows": routing.rows, "hidden": routing.leaf_hidden,
        "hidden_stride": routing.leaf_hidden.strides[0],
    }  # fmt: skip
    build.add(
        KernelId("inward", fmt), "leaves.inward", "experts", index, EXPERTS, 1, active=routing.active, columns=columns,
        column_stride=columns.strides[0], **hidden, **leaves, cost=inward, shape=shape,
    )  # fmt: skip
    unit = max(groups // OUTWARD_CHUNKS, 1)
    build.add(
        KernelId("outward", fmt), "leaves.outward", "experts", index, CROWD, -(-groups // unit), unit=unit,
        row_weights=routing.row_weights, **hidden, **leaves, cost=outward, shape=f"{target.width} × {ff.width}",
    )  # fmt: skip


def _leaf_costs(build: Ops, index: int, ff: FeedForwardSpec, target: Target) -> tuple[Cost, Cost]:
    """Costs of leaves' first neurons and of what these return, in steps of several tokens."""
    rows, D, fmt = (1 + ff.gated) * ff.width, build.hidden, build.format(f"layers.{index}.leaves.inward")
    inward = rows * row_bytes(fmt, D) + (4 * rows if ff.bias else 0)
    outward = ff.width * row_bytes(fmt, target.width) + (4 * target.width if ff.bias and not _neurons(ff) else 0)
    routed = build.routing.position(index)
    return (
        Cost(macs=ff.active * rows * D, routed=routed, expert_bytes=inward, steps="several"),
        Cost(macs=ff.active * ff.width * target.width, routed=routed, expert_bytes=outward, steps="several"),
    )


def _neurons(ff: FeedForwardSpec) -> bool:
    return isinstance(ff.router, TreeSpec) and ff.router.neurons


def _leaf_operands(build: Ops, index: int, ff: FeedForwardSpec, target: Target, leaf_weight: float) -> dict[str, Any]:
    bank = f"layers.{index}.leaves"
    leaves = build.weights.tensor(bank)
    inward = build.vector(bank + ".inward.bias", (1 + ff.gated) * ff.width) if ff.bias else None
    outward = build.vector(bank + ".outward.bias", target.width) if ff.bias and not _neurons(ff) else None
    return {
        "leaves": leaves, "leaf_stride": leaves.strides[0], "outward": build.weights.offset(bank + ".outward"),
        "width": ff.width, "gated": int(ff.gated), "activation": ACTIVATIONS.index(ff.activation),
        "inward_groups": padded(build.hidden) // GROUP, "outward_groups": padded(target.width) // GROUP,
        "bias": inward, "bias_stride": 0 if inward is None else inward.strides[0],
        "outward_bias": outward,
        "outward_bias_stride": 0 if outward is None else outward.strides[0],
        "leaf_weight": leaf_weight, "scale": target.scale, "mode": target.mode, "out": target.out,
        "out_stride": target.out.strides[0], "out_width": target.width, "scratch": build.scratch,
        "scratch_stride": build.scratch.strides[0],
    }  # fmt: skip
