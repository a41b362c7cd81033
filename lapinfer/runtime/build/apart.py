"""The ops of experts on other nodes: what is sent and summed where the tokens are, and what a node computes."""

from __future__ import annotations

import numpy as np

from lapinfer.kernels.operands import EACH, EXPERT_TILES, ONE, ROW_GROUP_BYTES, SENT, TILE_GROUP_BYTES
from lapinfer.quant import GROUP
from lapinfer.runtime.build.experts import bytes_of_an_expert, matrices_of_experts
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.build.trees import Target
from lapinfer.runtime.cost import Cost
from lapinfer.runtime.exchange import Exchange
from lapinfer.runtime.ops import Ops
from lapinfer.runtime.sizes import blocks_of_all_experts, padded


def experts_apart(build: Ops, exchange: Exchange, index: int, kind: int, target: Target) -> None:
    """Send the sorted tokens of a layer to the nodes, and add up what comes back.

    The last op has the cost of the experts, which nodes have read: a model's bytes are the same wherever they are.
    """
    routing, groups = build.routing, padded(build.hidden) // GROUP
    position, ff = routing.position(index), build.feed_forwards[index]
    node_of, row_bytes = exchange.placement.node_of[position], groups * ROW_GROUP_BYTES[kind]
    build.add(
        "parcels", "parcels", "router", index, ONE, 1, tiles=routing.tiles, rows=routing.rows, node_of=node_of,
        nodes=exchange.placement.nodes, place=exchange.place, parcels=exchange.parcels, sent=exchange.sent,
        pairs=exchange.pairs, tile_pair=exchange.tile_pair,
    )  # fmt: skip
    build.add(
        "wrap", "wrap", "router", index, SENT, 1, sent=exchange.sent, x=build.tiles, groups=groups, kind=kind,
        tile_bytes=groups * TILE_GROUP_BYTES[kind], out=exchange.rows, row_bytes=row_bytes,
        after=exchange.of_layer(position, row_bytes),
    )  # fmt: skip
    blocks = build.weights.row_blocks(f"layers.{index}.experts.down")
    unit = blocks_of_all_experts(blocks, build.limits.threads)
    rows = first_matrix(ff)[1]
    build.add(
        "answers", "experts", "experts", index, ONE, -(-blocks // unit), tiles=routing.tiles, rows=routing.rows,
        row_weights=routing.row_weights, node_of=node_of, parcels=exchange.parcels, tile_pair=exchange.tile_pair,
        stride=4 * exchange.width, row_blocks=blocks, unit=unit, mode=target.mode, out=target.out,
        out_stride=target.out.strides[0], scale=target.scale,
        shape=f"{rows} × {build.hidden}, {target.width} × {ff.width}", after=exchange.let_go,
        cost=Cost(
            macs=ff.active * (rows * build.hidden + target.width * ff.width), routed=position,
            expert_bytes=bytes_of_an_expert(build, index, target.width),
        ),
    )  # fmt: skip


def experts_of_a_node(
    build: Ops, index: int, *, received: np.ndarray, sources: np.ndarray, out: np.ndarray, width: int
) -> None:
    """The matrices of a layer's experts × rows of activations that were sent; three ops.

    received: int64 [1], the address of these rows. sources: int64 [tiles · TILE], which row each token of a tile is.
    out: float32 [pairs, ≥ width], by routing.rows.
    """
    routing, groups = build.routing, padded(build.hidden) // GROUP
    bank = f"layers.{index}.experts"
    kind = build.activation_kind(f"{bank}.{first_matrix(build.feed_forwards[index])[0]}")
    build.add(
        "unwrap", "unwrap", "experts", index, EXPERT_TILES, 1, x=received, row_bytes=groups * ROW_GROUP_BYTES[kind],
        groups=groups, kind=kind, tiles=routing.tiles, sources=sources, gathered=routing.gathered,
        tile_bytes=groups * TILE_GROUP_BYTES[kind],
    )  # fmt: skip
    addresses = routing.addresses(build.weights.tensor(bank))
    matrices_of_experts(build, index, addresses, Target(out, EACH, width))
