"""What routed layers share in a step: logits, choices, and the tokens of each expert as tiles (kernels/route.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.kernels.operands import ACTIVE_EXPERT, EXPERT_TILE, F32_TILE_GROUP, TILE
from lapinfer.quant import GROUP
from lapinfer.spec import FeedForwardSpec, ModelSpec

if TYPE_CHECKING:
    from lapinfer.runtime.build import Limits


def most_tiles(ff: FeedForwardSpec, tokens: int) -> int:
    """Tiles that `tokens` tokens can make: whole ones, and one begun for each expert that has any."""
    if ff.router is None:
        return 0
    pairs = tokens * ff.router.top_k
    return pairs // TILE + min(ff.router.n_experts, pairs) + ff.shared * -(-tokens // TILE)


@dataclass(frozen=True, slots=True)
class RoutingBuffers:
    """Buffers of all routed layers, and what each of them chose in the last step.

    layers: their indexes. chosen int64, weight float32 [routed layers, T, A]: experts in order of rank, −1 where a
    layer has fewer; counts int64 [routed layers, E]: tokens of each expert, shared ones last.
    """

    layers: tuple[int, ...]
    exact: np.ndarray
    logits: np.ndarray
    hint_tiles: np.ndarray
    hint_exact: np.ndarray
    hint_logits: np.ndarray
    chosen: np.ndarray
    weight: np.ndarray
    counts: np.ndarray
    finished: np.ndarray
    active: np.ndarray
    tiles: np.ndarray
    rows: np.ndarray
    row_weights: np.ndarray
    gathered: np.ndarray
    hidden: np.ndarray

    @classmethod
    def for_spec(cls, spec: ModelSpec, limits: Limits) -> RoutingBuffers:
        routed = {i: layer.feed_forward for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None}
        step = -(-limits.step // TILE) * TILE
        tiles = max((most_tiles(ff, step) for ff in routed.values()), default=0)
        experts = max((ff.experts for ff in routed.values()), default=0)
        chosen = max((ff.router.top_k for ff in routed.values() if ff.router), default=0)
        width = max((ff.width for ff in routed.values()), default=0)

        def tile_bytes(count: int, columns: int) -> np.ndarray:
            return np.zeros((count, -(-columns // (2 * GROUP)) * 2, F32_TILE_GROUP), np.uint8)

        return cls(
            layers=tuple(routed),
            exact=np.zeros((step if routed else 0, -(-spec.hidden // GROUP) * GROUP), np.float32),
            logits=np.zeros((step if routed else 0, -(-(experts + 1) // GROUP) * GROUP), np.float32),
            hint_tiles=tile_bytes(step // TILE if routed else 0, spec.hidden),
            hint_exact=np.zeros((step if routed else 0, -(-spec.hidden // GROUP) * GROUP), np.float32),
            hint_logits=np.zeros((step if routed else 0, -(-(experts + 1) // GROUP) * GROUP), np.float32),
            chosen=np.full((len(routed), step, chosen), -1, np.int64),
            weight=np.zeros((len(routed), step, chosen), np.float32),
            counts=np.zeros((len(routed), experts), np.int64),
            finished=np.zeros(1, np.int64),
            active=np.zeros((experts, len(ACTIVE_EXPERT)), np.int64),
            tiles=np.zeros((tiles, len(EXPERT_TILE)), np.int64),
            rows=np.zeros(tiles * TILE, np.int64),
            row_weights=np.zeros(tiles * TILE, np.float32),
            gathered=tile_bytes(tiles, spec.hidden),
            hidden=tile_bytes(tiles, width),
        )

    def position(self, layer: int) -> int:
        """A layer's place among the routed ones."""
        return self.layers.index(layer)

    @staticmethod
    def addresses(bank: np.ndarray) -> np.ndarray:
        """Where each expert of a bank [E, bytes] lies."""
        return bank.ctypes.data + bank.strides[0] * np.arange(len(bank), dtype=np.int64)
