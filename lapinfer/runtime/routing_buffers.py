"""Buffers that routed layers share in a step: logits, choices, each expert's tokens as tiles (kernels/route.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import ACTIVE_EXPERT, EXPERT_TILE, F32_TILE_GROUP, TILE
from lapinfer.quant import GROUP
from lapinfer.runtime.buffers import zeros
from lapinfer.spec import FeedForwardSpec, RouterSpec, TreeSpec


def most_tiles(ff: FeedForwardSpec, tokens: int) -> int:
    """Tiles that `tokens` tokens can fill at most: full ones, and one partly filled for each expert with tokens."""
    if ff.router is None:
        return 0
    pairs = tokens * ff.router.top_k
    return pairs // TILE + min(ff.router.n_experts, pairs) + ff.shared * -(-tokens // TILE)


@dataclass(frozen=True, slots=True)
class RoutingBuffers:
    """Buffers of all routed layers, and the choices of the last step.

    layers: their indices. chosen int64, weight float32 [routed layers, T, A]: experts in order of rank, −1 where a
    layer has fewer. path float32 [routed layers, T, nodes]: logits of the nodes that each token met, tree by tree, NaN
    where a layer has fewer. distinct, nodes int64 [routed layers]: numbers of experts (with shared ones) and of nodes
    that the step has read. The other arrays are operands of the ops (kernels/operands.py).
    """

    layers: tuple[int, ...]
    exact: np.ndarray
    logits: np.ndarray
    chosen: np.ndarray
    weight: np.ndarray
    path: np.ndarray
    distinct: np.ndarray
    nodes: np.ndarray
    counts: np.ndarray
    finished: np.ndarray
    active: np.ndarray
    tiles: np.ndarray
    rows: np.ndarray
    row_weights: np.ndarray
    gathered: np.ndarray
    hidden: np.ndarray
    leaf_hidden: np.ndarray

    @classmethod
    def for_layers(cls, hidden: int, feed_forwards: Mapping[int, FeedForwardSpec], step: int) -> RoutingBuffers:
        """For steps of at most `step` tokens, a multiple of TILE."""
        routed = {i: ff for i, ff in feed_forwards.items() if ff.router is not None}
        routers = [ff.router for ff in routed.values() if ff.router is not None]
        tiles = max((most_tiles(ff, step) for ff in routed.values()), default=0)
        experts = max((ff.experts for ff in routed.values()), default=0)
        scored = max((r.n_experts + 1 for r in routers if isinstance(r, RouterSpec)), default=0)
        chosen = max((router.top_k for router in routers), default=0)
        width = max((ff.width for ff in routed.values() if not ff.narrow), default=0)
        leaf = max((ff.width * (1 + ff.gated) for ff in routed.values() if ff.narrow), default=0)
        path = max((max(r.path, r.top_k * r.neurons) for r in routers if isinstance(r, TreeSpec)), default=0)
        T, L = (step, len(routed)) if routed else (0, 0)

        def floats(count: int, columns: int) -> np.ndarray:
            return zeros((count, -(-columns // GROUP) * GROUP))

        def tile_bytes(count: int, columns: int) -> np.ndarray:
            return zeros((count, -(-columns // (2 * GROUP)) * 2, F32_TILE_GROUP), np.uint8)

        return cls(
            layers=tuple(routed),
            exact=floats(T, hidden),
            logits=floats(T, scored),
            chosen=np.full((L, step, chosen), -1, np.int64),
            weight=np.zeros((L, step, chosen), np.float32),
            path=np.full((L, step, path), np.nan, np.float32),
            distinct=np.zeros(L, np.int64),
            nodes=np.zeros(L, np.int64),
            counts=np.zeros(experts, np.int64),
            finished=np.zeros(1, np.int64),
            active=np.zeros((min(experts, tiles), len(ACTIVE_EXPERT)), np.int64),
            tiles=np.zeros((tiles, len(EXPERT_TILE)), np.int64),
            rows=np.zeros(tiles * TILE, np.int64),
            row_weights=np.zeros(tiles * TILE, np.float32),
            gathered=tile_bytes(tiles, hidden if width else 0),
            hidden=tile_bytes(tiles, width),
            leaf_hidden=floats(tiles * TILE if leaf else 0, leaf + GROUP),
        )

    def position(self, layer: int) -> int:
        """A layer's position among the routed ones."""
        return self.layers.index(layer)

    @staticmethod
    def addresses(bank: np.ndarray) -> np.ndarray:
        """The address of each expert of a bank [E, bytes]."""
        return bank.ctypes.data + bank.strides[0] * np.arange(len(bank), dtype=np.int64)
