"""How long a layer takes inside a model: its ops many times in one plan, without a call from Python for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lapinfer.kernels.control import NS
from lapinfer.kernels.operands import ACT_F32, STORE
from lapinfer.layers.layer import Layer
from lapinfer.runtime.build.feed_forward import feed_forward
from lapinfer.runtime.build.trees import Before, Target
from lapinfer.runtime.ops import Limits, Ops, Weights
from lapinfer.runtime.runner import Runner
from lapinfer.spec import FeedForwardSpec


class Repeated:
    """A feed-forward `times` times in one plan, each time with other inputs and with the next of several copies.

    copies: weights of the same layer, taken in random order; they share all buffers. x: float32 [N, width], of which
    each time gets `batch` random rows, because a processor that has seen the same decisions before would predict them.
    An op before each layer copies its inputs from wherever they lie, so that the layer finds them in a cache, as it
    does in a model; the time of these ops is not counted.
    """

    def __init__(
        self, ff: FeedForwardSpec, width: int, out: int, copies: Sequence[Weights], x: np.ndarray, batch: int,
        times: int, *, threads: int = 1, activations: Literal["q8", "q16"] = "q8", seed: int = 0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        limits = Limits(1, step=max(batch, 8), threads=threads, activations=activations)
        build = Ops(width, {0: ff}, copies[0], limits, out=out)
        self.times, self.batch = times, batch
        self._x = np.zeros((times, batch, build.x.shape[1]), np.float32)
        self._x[:, :, :width] = x[rng.integers(0, len(x), (times, batch))]
        order = np.concatenate([rng.permutation(len(copies)) for _ in range(-(-times // len(copies)))])
        for inputs, copy in zip(self._x, order, strict=False):
            build.norm_of(inputs, "input", None, width, 0, "input", ACT_F32, exact=build.x, out=0)
            build.weights = copies[copy]
            feed_forward(build, 0, Before(None), Target(build.y, STORE, out))
        self._runner = Runner(build.ops, threads)
        self._inputs = np.array([op.part == "input" for op in build.ops])
        self._routing = build.routing

    @classmethod
    def of_layer(cls, layer: Layer, x: np.ndarray, batch: int, times: int) -> Repeated:
        """One layer, whose weights stay in the caches if they fit."""
        return cls(layer.ff, layer.width, layer.out, [layer.weights], x, batch, times, threads=layer.threads)

    def seconds(self) -> float:
        """Of one layer: a pass by the number of layers in it."""
        runner = self._runner
        runner.begin(self.batch)
        runner.meter.reset()
        total = runner.run()
        copying = runner.meter.counters[self._inputs, NS].sum() * runner.team.ns_per_tick()
        return (total - copying) / 1e9 / self.times

    def touched(self) -> int:
        """Bytes that a layer reads for its tokens; if it is routed, those of the last layer of a pass."""
        meter, zeros = self._runner.new_meter(), np.zeros(self.batch, np.int64)
        self.seconds()
        meter.record(zeros, zeros, 0, 0, self._routing.distinct, self._routing.nodes)
        return int(meter.bytes[~self._inputs].sum()) // self.times

    def close(self) -> None:
        """Let the team's threads end."""
        self._runner.close()
