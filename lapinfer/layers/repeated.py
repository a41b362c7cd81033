"""What a layer takes inside a model: its ops many times over in one plan, without a call from Python for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lapinfer.kernels import library
from lapinfer.layers.layer import Layer
from lapinfer.runtime.ops import begin_step
from lapinfer.runtime.plan import Plan
from lapinfer.runtime.team import Team


class Repeated:
    """A layer's ops `times` times over in one plan, each time with other inputs, and with the next of several copies.

    layers: copies of one layer, which are taken in random order. x: float32 [N, D], of which each time gets `batch`
    rows at random: a processor that has seen the same decisions before would guess them.
    """

    def __init__(self, layers: Sequence[Layer], x: np.ndarray, batch: int, times: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.times, self.batch = times, batch
        buffers = layers[0]._ops
        wide = max(buffers.x.shape[1], buffers.y.shape[1])
        rows = -(-batch // 8) * 8
        self.x = np.zeros((times, rows, wide), np.float32)
        self.y = np.zeros((times, rows, wide), np.float32)
        self.x[:, :batch, : x.shape[1]] = x[rng.integers(0, len(x), (times, batch))]
        order = np.concatenate([rng.permutation(len(layers)) for _ in range(-(-times // len(layers)))])[:times]
        ops = []
        for i, which in enumerate(order):
            own = layers[which]._ops
            for op in own.ops:
                operands = {
                    key: self.x[i] if value is own.x else self.y[i] if value is own.y else value
                    for key, value in op.operands.items()
                }
                ops.append(replace(op, operands=operands))
        kernels = library.load([*{op.kernel for op in ops}, "lead", "follow", "read_clock"])
        self.plan, self.team = Plan(ops, kernels), Team(layers[0].threads, kernels)
        self.header, self.counters = np.zeros_like(layers[0]._header), np.zeros((len(ops), 2), np.int64)

    def seconds(self) -> float:
        """Of one pass of one layer."""
        begin_step(self.header, self.batch)
        return self.team.run(self.plan, self.header, self.counters) / 1e9 / self.times

    def close(self) -> None:
        """Let the team's threads end."""
        self.team.close()
