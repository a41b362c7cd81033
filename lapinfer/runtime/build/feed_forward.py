"""The ops of a feed-forward: two matrices, or a router and the matrices of the experts that it chooses."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapinfer.kernels.operands import (
    ACTIVATIONS,
    ADD,
    GATED,
    GATHERED_TILES,
    LOADS,
    ONE,
    PLAIN,
    SCORES,
    STORE,
    TILE_GROUP_BYTES,
    TILES,
)
from lapinfer.quant import GROUP
from lapinfer.runtime.build.apart import experts_apart
from lapinfer.runtime.build.experts import first_bias, matrices_of_experts
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.build.trees import Before, Target, descend, narrow_leaves, sort_operands
from lapinfer.runtime.cost import FREE, Cost
from lapinfer.runtime.ops import Ops
from lapinfer.runtime.pool import ExpertPool
from lapinfer.runtime.sizes import (
    padded,
)
from lapinfer.spec import FeedForwardSpec, LayerSpec, RouterSpec, TreeSpec


def feed_forward_of_layer(build: ModelOps, index: int, layer: LayerSpec) -> None:
    """Norm, feed-forward, and what returns to the residual stream."""
    p, post, D = f"layers.{index}.", layer.ff_post_norm, build.hidden
    if layer.parallel:
        shared = layer.ff_norm is None
        before = Before(layer.attn_norm, "attn_norm", again=True) if shared else Before(layer.ff_norm)
        feed_forward(build, index, before, Target(build.y, ADD, D))
        build.add_norm(p + "halves", None, index, "feed-forward", layer.residual_scale)
        return
    target = Target(build.x, ADD, D, layer.residual_scale) if post is None else Target(build.y, STORE, D)
    feed_forward(build, index, Before(layer.ff_norm), target)
    if post is not None:
        build.add_norm(p + "ff_post_norm", post, index, "feed-forward", layer.residual_scale)


def feed_forward(build: Ops, index: int, before: Before, target: Target) -> None:
    """The ops of build.feed_forwards[index] on the normed residual stream."""
    ff = build.feed_forwards[index]
    if ff.router is None:
        _dense(build, index, ff, before, target)
    elif ff.narrow:
        narrow_leaves(build, index, ff, ff.router, before, target)
    else:
        _routed(build, index, ff, before, target)


def _dense(build: Ops, index: int, ff: FeedForwardSpec, before: Before, target: Target) -> None:
    p, D = f"layers.{index}.", build.hidden
    name, rows = first_matrix(ff)
    kind = build.activation_kind(p + name)
    build.norm_of(build.x, p + before.name, before.norm, D, index, "feed-forward", kind, again=before.again)
    build.matmul(
        p + name, index, "feed-forward", build.tiles, GATED if ff.gated else PLAIN,
        bias=first_bias(build, p + name, ff), activation=ACTIVATIONS.index(ff.activation), curve=_curve(build, p, ff),
        out_kind=build.activation_kind(p + "down"), logical=(rows, D),
    )  # fmt: skip
    bias = build.vector(p + "down.bias", target.width) if ff.bias else None
    build.matmul(
        p + "down", index, "feed-forward", build.hidden_tiles, target.mode, out=target.out, bias=bias,
        scale=target.scale, logical=(target.width, ff.width),
    )  # fmt: skip


def _curve(build: Ops, p: str, ff: FeedForwardSpec) -> np.ndarray | None:
    """What xIELU is told by: α above 0, α below, β, ε."""
    if ff.activation != "xielu":
        return None
    above, below, beta, eps = build.weights.tensor(p + "xielu")
    above, below = (np.logaddexp(np.float32(0), alpha) for alpha in (above, below))
    return np.array([above, beta + below, beta, eps], np.float32)


def _routed(build: Ops, index: int, ff: FeedForwardSpec, before: Before, target: Target) -> None:
    """Router, choice, and the two matrices of the chosen experts; every token gets the shared experts."""
    p, D, routing = f"layers.{index}.", build.hidden, build.routing
    bank = f"layers.{index}.experts"
    kind = build.activation_kind(f"{bank}.{first_matrix(ff)[0]}")
    tile_bytes = padded(D) // GROUP * TILE_GROUP_BYTES[kind]
    build.norm_of(
        build.x, p + before.name, before.norm, D, index, "router", kind, exact=routing.exact, again=before.again
    )
    if isinstance(ff.router, TreeSpec):
        descend(build, index, ff, ff.router, routing.exact, tile_bytes)
    else:
        _route(build, index, ff, tile_bytes)
    if build.exchange is not None:
        experts_apart(build, build.exchange, index, kind, target)
        return
    addresses = routing.addresses(build.weights.tensor(bank))
    if build.pool is not None:
        _fetch(build, build.pool, index, addresses)
    build.add(
        "gather", "gather", "router", index, GATHERED_TILES, 1, x=build.tiles, groups=padded(D) // GROUP, kind=kind,
        tiles=routing.tiles, rows=routing.rows, gathered=routing.gathered, tile_bytes=tile_bytes,
    )  # fmt: skip
    matrices_of_experts(build, index, addresses, target)


def _route(build: Ops, index: int, ff: FeedForwardSpec, tile_bytes: int) -> None:
    """The router's logits, and the choice of experts by them."""
    routing, router = build.routing, _router(build, index)
    _logits(build, index)
    gate = routing.logits[:, router.n_experts :] if ff.shared_gate else None
    build.add(
        "route", "route", "router", index, TILES, 1, **_router_operands(build, index),
        **sort_operands(build, index, ff, tile_bytes, build.tiles, gate=0 if gate is None else gate.ctypes.data),
        scratch=build.scratch, scratch_stride=build.scratch.strides[0],
        cost=Cost(weight_bytes=4 * router.n_experts) if router.selection_bias else FREE,
    )  # fmt: skip


def _router(build: Ops, index: int) -> RouterSpec:
    router = build.feed_forwards[index].router
    assert isinstance(router, RouterSpec)
    return router


def _router_operands(build: Ops, index: int) -> dict[str, Any]:
    """How a layer chooses experts by its logits."""
    router, logits = _router(build, index), build.routing.logits
    selection = 0
    if router.selection_bias:
        selection = build.vector(f"layers.{index}.router.selection_bias", router.n_experts)
    return {
        "logits": logits, "logits_stride": logits.strides[0], "experts": router.n_experts, "top_k": router.top_k,
        "score": SCORES.index(router.score), "normalise": int(router.normalise), "eps": router.eps,
        "least_sum": router.least_sum,
        "scale": router.scale, "selection_bias": selection, "groups": router.groups, "top_groups": router.top_groups,
        "group_best": router.group_best, "jitter": router.jitter,
    }  # fmt: skip


def _logits(build: Ops, index: int) -> None:
    """A router's logits of normed tokens."""
    router, p, x, out = _router(build, index), f"layers.{index}.", build.routing.exact, build.routing.logits
    bias = build.vector(p + "router.bias", router.n_experts) if router.bias else None
    weights = build.weights.tensor(p + "router")
    rows, columns = router.n_experts + int(build.feed_forwards[index].shared_gate), build.hidden
    build.add(
        build.kernel("router", p + "router"), "router", "router", index, ONE, len(weights), weights=weights,
        row_blocks=len(weights), groups=padded(columns) // GROUP, x=x, x_stride=x.strides[0], out=out,
        out_stride=out.strides[0], bias=bias,
        cost=Cost(weights.nbytes + (0 if bias is None else 4 * router.n_experts), macs=rows * columns),
        shape=f"{rows} × {columns}",
    )  # fmt: skip


def _fetch(build: Ops, pool: ExpertPool, index: int, addresses: np.ndarray) -> None:
    """See that the chosen experts are in memory, or ask the system for them."""
    routing, position = build.routing, build.routing.position(index)
    if pool.pooled:
        build.add(
            "place", "place", "router", index, ONE, 1, active=routing.active, weights=addresses,
            **pool.place_operands(position),
        )  # fmt: skip
        build.add("load", "load", "router", index, LOADS, 1, **pool.load_operands(), position=position)
    else:
        build.add(
            "request", "request", "router", index, ONE, 1, active=routing.active, **pool.request_operands(position)
        )
