"""A node that has some experts of each routed layer, and applies them to activations that were sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lapinfer.kernels.operands import (
    EXPERT_TILES,
    EXPERTS,
    PAIR,
    ROW_GROUP_BYTES,
    TILE,
)
from lapinfer.progress import Progress, silent
from lapinfer.quant import GROUP, ROWS
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.build.apart import experts_of_a_node
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.ops import Limits, Ops, Weights
from lapinfer.runtime.routing_buffers import most_tiles
from lapinfer.runtime.runner import Runner
from lapinfer.runtime.sizes import padded
from lapinfer.spec import ModelSpec

OPS_OF_A_LAYER = 3


class ExpertNode:
    """Runs the experts of one node by the ops and kernels that a whole model runs them by.

    experts: those that it has, by routed layer. limits: step, threads and activations count.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, limits: Limits, experts: Sequence[np.ndarray], *,
        progress: Progress = silent,
    ):  # fmt: skip
        routed = {i: layer.feed_forward for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None}
        build = Ops(spec.hidden, routed, weights, limits)
        self._routing, self._experts, step = build.routing, experts, len(build.x)
        self._tiles = [most_tiles(ff, step) for ff in routed.values()]
        self._sources = np.zeros(TILE * max(self._tiles), np.int64)
        self._received = np.zeros(1, np.int64)
        self._out = zeros((step * max(ff.active for ff in routed.values()), padded(spec.hidden, ROWS)))
        self._tile_bytes, self._row_bytes = [], []
        for i, ff in routed.items():
            kind = build.activation_kind(f"layers.{i}.experts.{first_matrix(ff)[0]}")
            self._row_bytes.append(padded(spec.hidden) // GROUP * ROW_GROUP_BYTES[kind])
            experts_of_a_node(
                build, i, received=self._received, sources=self._sources, out=self._out, width=spec.hidden
            )
        self._step, self._active = step, [ff.active for ff in routed.values()]
        self.runner = Runner(build.ops, limits.threads, progress=progress)
        self._distinct = np.zeros(len(routed), np.int64)

    @property
    def usage(self) -> Meter:
        """What requests have touched so far: experts' bytes."""
        return self.runner.meter

    def answer(self, request: Request) -> Answer:
        """ValueError for what is no request to this node."""
        position, pairs, rows = request.position, request.pairs, request.rows
        self._check(position, rows, pairs)
        experts, tiles = self._enter(position, pairs)
        self._received[0] = rows.ctypes.data
        runner, count = self.runner, len(pairs)
        runner.begin(count)
        runner.words[EXPERTS], runner.words[EXPERT_TILES] = experts, tiles
        begin = OPS_OF_A_LAYER * position
        ns = runner.team.run_part(begin, begin + OPS_OF_A_LAYER, runner.team.threads)
        self._distinct[position] = experts
        nothing = np.zeros(1, np.int64)
        runner.meter.record(nothing, nothing, 0, ns, self._distinct, np.zeros_like(self._distinct))
        touched = sum(op.cost.expert_bytes for op in runner.plan.ops[begin : begin + OPS_OF_A_LAYER]) * experts
        self._distinct[position] = 0
        return Answer(self._out[:count], ns, touched)

    def _check(self, position: int, rows: np.ndarray, pairs: np.ndarray) -> None:
        """Kernels get addresses alone."""
        if not 0 <= position < len(self._row_bytes):
            raise ValueError(f"layer {position}: expected 0 to {len(self._row_bytes) - 1}")
        most, row_bytes = self._step * self._active[position], self._row_bytes[position]
        if rows.dtype != np.uint8 or rows.shape != (len(rows), row_bytes) or not rows.flags.c_contiguous:
            raise ValueError(f"rows: expected contiguous uint8 [n, {row_bytes}], got {rows.dtype} {rows.shape}")
        if pairs.dtype != np.int64 or pairs.shape != (len(pairs), len(PAIR)) or not 0 < len(pairs) <= most:
            raise ValueError(f"pairs: expected 1 to {most} of int64 {len(PAIR)}, got {pairs.dtype} {pairs.shape}")
        if pairs[:, 1].min() < 0 or pairs[:, 1].max() >= len(rows):
            raise ValueError(f"pairs: a token is none of the {len(rows)} that were sent")
        if not np.isin(pairs[:, 0], self._experts[position]).all() or (np.diff(pairs[:, 0]) < 0).any():
            raise ValueError("pairs: an expert is none of this node's, or they are not in order")

    def _enter(self, position: int, pairs: np.ndarray) -> tuple[int, int]:
        """Enter the pairs into the tables as tiles of one expert each: how many experts and tiles there are."""
        routing, expert = self._routing, pairs[:, 0]
        starts = np.flatnonzero(np.diff(expert, prepend=-1))
        counts = np.diff(starts, append=len(expert))
        tiles = -(-counts // TILE)
        stops = np.cumsum(tiles)
        first, total = stops - tiles, int(stops[-1])
        if total > self._tiles[position]:
            raise ValueError(f"pairs: they fill {total} tiles, expected at most {self._tiles[position]}")
        active, table = routing.active[: len(starts)], routing.tiles[:total]
        active[:, 0], active[:, 1], active[:, 2] = expert[starts], first, stops
        table[:, 0] = np.repeat(expert[starts], tiles)
        place_in_expert = np.arange(total) - np.repeat(first, tiles)
        table[:, 1] = np.minimum(np.repeat(counts, tiles) - TILE * place_in_expert, TILE)
        row_bytes = self._row_bytes[position]
        table[:, 2] = routing.gathered.ctypes.data + TILE * row_bytes * np.arange(total)
        places = np.arange(len(expert)) + np.repeat(TILE * first - starts, counts)
        self._sources[places] = pairs[:, 1]
        routing.rows[places] = np.arange(len(expert))
        return len(starts), total

    def close(self) -> None:
        self.runner.close()
