"""What it takes the engine to ask a node, besides network and experts: tables, checks, copies, Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from lapinfer.model import Model
from lapinfer.report.random_weights import random_weights, shape_formats
from lapinfer.report.shapes import shape_spec
from lapinfer.report.timing import Watch
from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.runtime.local_nodes import LocalNodes
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.placement import placed
from lapinfer.scale.times import Asking
from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec
from lapinfer.tensors import tensors

TOKENS = (1, 64)
"""Of steps: what grows with them is seen between these."""
ROUNDS, STEPS = 8, 6
"""The fastest round counts."""
LAYERS = 4


class _Clocked(LocalNodes):
    """A node in the process, and how long it was asked, and has computed."""

    asked = computed = 0.0

    def ask(self, requests: Mapping[int, Request]) -> Mapping[int, Answer]:
        began = time.perf_counter()
        answers = super().ask(requests)
        self.asked += time.perf_counter() - began
        self.computed += sum(answer.ns for answer in answers.values()) / 1e9
        return answers


def measured_asking(threads: int) -> tuple[Asking, Asking]:
    """Of a home, and of a node; of a small mixture, since neither depends on how large experts are."""
    spec = _small()
    weights = random_weights(tensors(spec).values(), shape_formats(spec, "q4"))
    limits = Limits(STEPS + 2, TOKENS[-1], step=TOKENS[-1], threads=threads)
    feed_forwards = [layer.feed_forward for layer in spec.layers]
    nodes = _Clocked(spec, weights, limits, placed(feed_forwards, 1))
    with closing(Model(spec, weights, limits)) as whole, closing(Model(spec, weights, limits, nodes=nodes)) as apart:
        seconds = [_seconds(whole, apart, nodes, tokens) for tokens in TOKENS]
    pairs = [tokens * feed_forwards[0].active for tokens in TOKENS]
    home, node = (_line(pairs, side) for side in zip(*seconds, strict=True))
    return home, node


def _small() -> ModelSpec:
    spec = shape_spec("100m", "moe")
    ff = FeedForwardSpec(64, "silu", router=RouterSpec(16, 2))
    layer = replace(spec.layers[0], feed_forward=ff)
    return replace(spec, vocab=256, layers=(layer,) * LAYERS)


def _seconds(whole: Model, apart: Model, nodes: _Clocked, tokens: int) -> tuple[float, float]:
    """Of a layer, at home and at the node."""
    homes, of_nodes = [], []
    for _ in range(ROUNDS):
        watch = Watch(whole).steps(_steps(tokens))
        experts = sum(row["seconds"] for row in watch.meter.by_op() if row["part"] == "experts")
        usual = (sum(watch.seconds) - experts) / len(watch.seconds)
        before = Watch(apart).steps(_steps(tokens)[:2])  # warm
        nodes.asked = nodes.computed = 0.0
        for step in _steps(tokens)[1:]:
            before.step(*step)
        n = STEPS
        homes.append((sum(before.seconds[-n:]) - nodes.asked) / n - usual)
        of_nodes.append((nodes.asked - nodes.computed) / n)
    return max(min(homes), 0.0) / LAYERS, max(min(of_nodes), 0.0) / LAYERS


def _steps(tokens: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    slots = np.arange(tokens)
    return [((7 * slots + i) % 256, slots, np.full(tokens, i)) for i in range(STEPS + 1)]


def _line(pairs: Sequence[int], seconds: Sequence[float]) -> Asking:
    slope = max((seconds[1] - seconds[0]) / (pairs[1] - pairs[0]), 0.0)
    return Asking(max(seconds[0] - slope * pairs[0], 0.0), slope)
