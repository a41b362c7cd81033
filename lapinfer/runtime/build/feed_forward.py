"""The ops of a feed-forward: two matrices, or a router and the matrices of the experts that it chooses."""

from __future__ import annotations

from typing import Any

import numpy as np

from lapinfer.kernels.operands import (
    ACTIVATIONS,
    ADD,
    EXPERTS,
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
from lapinfer.quant.blocks import interleaved_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.build.trees import Target, descend, narrow_leaves, sort_operands
from lapinfer.runtime.cost import FREE, Cost
from lapinfer.runtime.ops import Ops
from lapinfer.runtime.pool import ExpertPool
from lapinfer.runtime.sizes import (
    blocks_of_all_experts,
    blocks_of_an_expert,
    padded,
)
from lapinfer.spec import FeedForwardSpec, LayerSpec, NormSpec, RouterSpec, TreeSpec


def feed_forward_of_layer(build: ModelOps, index: int, layer: LayerSpec) -> None:
    """Norm, feed-forward, and what returns to the residual stream."""
    p, post, D = f"layers.{index}.", layer.ff_post_norm, build.hidden
    target = Target(build.x, ADD, D, layer.residual_scale) if post is None else Target(build.y, STORE, D)
    feed_forward(build, index, layer.ff_norm, target)
    if post is not None:
        build.add_norm(p + "ff_post_norm", post, index, "feed-forward", layer.residual_scale)


def feed_forward(build: Ops, index: int, norm: NormSpec | None, target: Target) -> None:
    """The ops of build.feed_forwards[index] on the normed residual stream."""
    ff = build.feed_forwards[index]
    if ff.router is None:
        _dense(build, index, ff, norm, target)
    elif ff.narrow:
        narrow_leaves(build, index, ff, ff.router, norm, target)
    else:
        _routed(build, index, ff, norm, target)


def _dense(build: Ops, index: int, ff: FeedForwardSpec, norm: NormSpec | None, target: Target) -> None:
    p, D = f"layers.{index}.", build.hidden
    name, rows = first_matrix(ff)
    build.norm(p + "ff_norm", norm, index, "feed-forward", build.activation_kind(p + name))
    build.matmul(
        p + name, index, "feed-forward", build.tiles, GATED if ff.gated else PLAIN,
        bias=_first_bias(build, p + name, ff), activation=ACTIVATIONS.index(ff.activation),
        out_kind=build.activation_kind(p + "down"), logical=(rows, D),
    )  # fmt: skip
    bias = build.vector(p + "down.bias", target.width) if ff.bias else None
    build.matmul(
        p + "down", index, "feed-forward", build.hidden_tiles, target.mode, out=target.out, bias=bias,
        scale=target.scale, logical=(target.width, ff.width),
    )  # fmt: skip


def _routed(build: Ops, index: int, ff: FeedForwardSpec, norm: NormSpec | None, target: Target) -> None:
    """Router, choice, and the two matrices of the chosen experts; every token gets the shared experts."""
    p, D, routing = f"layers.{index}.", build.hidden, build.routing
    bank = f"layers.{index}.experts"
    first, rows = first_matrix(ff)
    kind = build.activation_kind(f"{bank}.{first}")
    tile_bytes = padded(D) // GROUP * TILE_GROUP_BYTES[kind]
    build.norm(p + "ff_norm", norm, index, "router", kind, exact=routing.exact)
    if isinstance(ff.router, TreeSpec):
        descend(build, index, ff, ff.router, routing.exact, tile_bytes)
    else:
        _route(build, index, ff, tile_bytes)
    addresses = routing.addresses(build.weights.tensor(bank))
    if build.pool is not None:
        _fetch(build, build.pool, index, addresses)
    build.add(
        "gather", "gather", "router", index, GATHERED_TILES, 1, x=build.tiles, groups=padded(D) // GROUP, kind=kind,
        tiles=routing.tiles, rows=routing.rows, gathered=routing.gathered, tile_bytes=tile_bytes,
    )  # fmt: skip
    _experts(
        build, bank, addresses, first, index, GATED if ff.gated else PLAIN,
        bias=_first_bias(build, f"{bank}.{first}", ff), activation=ACTIVATIONS.index(ff.activation), out=routing.hidden,
        out_kind=build.activation_kind(f"{bank}.down"), logical=(rows, D),
    )  # fmt: skip
    bias = build.vector(f"{bank}.down.bias", target.width) if ff.bias else None
    _experts(
        build, bank, addresses, "down", index, target.mode, bias=bias, out=target.out, scale=target.scale,
        logical=(target.width, ff.width),
    )  # fmt: skip


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


def _experts(
    build: Ops, bank: str, addresses: np.ndarray, part: str, layer: int, mode: int, *,
    logical: tuple[int, int], out: np.ndarray, bias: np.ndarray | None, scale: float = 1.0, activation: int = 0,
    out_kind: int = 0,
) -> None:  # fmt: skip
    """One matrix of each expert of a bank × the tokens that are routed to it."""
    name, routing = f"{bank}.{part}", build.routing
    ff, fmt = build.feed_forwards[layer], FORMATS[build.format(name)]
    blocks, groups = build.weights.row_blocks(name), padded(logical[1]) // GROUP
    size = fmt.row_block_bytes(logical[1])
    tiled = mode in (GATED, PLAIN)
    least = {GATED: 4, PLAIN: 2}.get(mode, 1)
    # The second matrix passes over all experts of a token in one chunk, so fewer blocks make a chunk large enough.
    if tiled:
        unit = blocks_of_an_expert(blocks, ff.active, least)
    else:
        unit = blocks_of_all_experts(blocks, build.limits.threads)
    chunks = -(-blocks // unit)
    build.add(
        build.kernel("experts", name), f"experts.{part}", "experts", layer, EXPERTS if tiled else ONE, chunks,
        weights=addresses, offset=build.weights.offset(name), row_blocks=blocks, groups=groups,
        unit=unit, chunks=chunks, active=routing.active, tiles=routing.tiles, rows=routing.rows,
        row_weights=routing.row_weights, x=0 if tiled else routing.hidden,
        tile_bytes=0 if tiled else groups * TILE_GROUP_BYTES[build.activation_kind(name)], mode=mode, out=out,
        out_stride=0 if tiled else out.strides[0], bias=bias,
        bias_stride=0 if bias is None else bias.strides[0], scale=scale, activation=activation,
        out_groups=blocks // least if tiled else 0, out_kind=out_kind, scratch=build.scratch,
        scratch_stride=build.scratch.strides[0],
        packed=build.weights.tensor(bank), shape=f"{logical[0]} × {logical[1]}",
        cost=Cost(
            macs=ff.active * logical[0] * logical[1], routed=routing.position(layer),
            expert_bytes=blocks * size + (0 if bias is None else 4 * logical[0]),
        ),
    )  # fmt: skip


def _first_bias(build: Ops, name: str, ff: FeedForwardSpec) -> np.ndarray | None:
    """Bias of a first matrix, or of each expert's [E, …], in the order of the packed rows."""
    if not ff.bias:
        return None
    if not ff.gated:
        return build.vector(name + ".bias", ff.width)
    order = interleaved_rows(ff.width)
    return np.ascontiguousarray(np.where(order >= 0, build.weights.tensor(name + ".bias")[..., order], np.float32(0)))
