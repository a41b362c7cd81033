"""The side of the model in front of nodes that have its experts: what goes to each, and what came from it.

The tables are written and read by kernels (kernels/parcels.py); between these, Python sends and waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from lapinfer.kernels.operands import PAIR, PARCEL
from lapinfer.quant import GROUP
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.expert_nodes import Answer, ExpertNodes, Request
from lapinfer.runtime.traffic import Traffic
from lapinfer.spec import FeedForwardSpec

F32_GROUP_BYTES = 4 * GROUP
"""Of a token's group of activations, in their widest form."""
ANSWERS = PARCEL.index("answers")


class Exchange:
    """Tables and buffers of one model; `traffic` counts.

    feed_forwards: of the routed layers. step: tokens of a step at most. groups: of 32 columns of what is sent. width:
    columns of an answer, with padding. ValueError for a placement of other layers or experts.
    """

    def __init__(
        self, nodes: ExpertNodes, feed_forwards: Sequence[FeedForwardSpec], *, step: int, tiles: int, groups: int,
        width: int,
    ):  # fmt: skip
        self.nodes, self.placement, self.width = nodes, nodes.placement, width
        expected, got = [ff.experts for ff in feed_forwards], [len(of) for of in self.placement.node_of]
        if expected != got:
            raise ValueError(f"a placement of {got} experts, by layer, expected {expected}")
        self.traffic = Traffic(feed_forwards, self.placement.nodes)
        copies = step * min(self.placement.nodes, max(ff.active for ff in feed_forwards))
        self.place = np.zeros(step, np.int64)
        self.sent = np.zeros(copies, np.int64)
        self.pairs = np.zeros((step * max(ff.active for ff in feed_forwards), len(PAIR)), np.int64)
        self.tile_pair = np.zeros(tiles, np.int64)
        self.parcels = np.zeros((self.placement.nodes, len(PARCEL)), np.int64)
        self.rows = zeros(copies * groups * F32_GROUP_BYTES, np.uint8)
        self._held: Mapping[int, Answer] = {}

    def of_layer(self, position: int, row_bytes: int) -> Callable[[], None]:
        """What sends a routed layer's requests and waits for the answers. row_bytes: of a token's activations."""
        return partial(self._exchange, position, row_bytes)

    def _exchange(self, position: int, row_bytes: int) -> None:
        requests = {}
        for node, (first, stop, first_pair, stop_pair, _) in enumerate(self.parcels.tolist()):
            if stop_pair > first_pair:
                rows = self.rows[first * row_bytes : stop * row_bytes].reshape(stop - first, row_bytes)
                requests[node] = Request(position, rows, self.pairs[first_pair:stop_pair])
        began = time.perf_counter_ns()
        answers = self.nodes.ask(requests)
        waited = time.perf_counter_ns() - began
        for node, request in requests.items():
            rows = answers[node].rows
            if rows.shape != (expected := (len(request.pairs), self.width)) or rows.dtype != np.float32:
                raise RuntimeError(f"node {node} answered {rows.dtype} {rows.shape}, expected float32 {expected}")
            if not rows.flags.c_contiguous:
                raise RuntimeError(f"node {node} answered rows that do not lie side by side")
            self.parcels[node, ANSWERS] = rows.ctypes.data
        self._held = answers  # kernels have only their addresses
        self.traffic.record(position, requests, answers, waited)

    def let_go(self) -> None:
        """The answers are added up: nodes may write to the same memory again."""
        self._held = {}

    def close(self) -> None:
        """End the nodes, and what memory their answers lie in."""
        self.let_go()
        self.nodes.close()
