"""For `--network local`, measured: what processes of this machine share, and what a message between two takes."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from lapinfer.cluster import start
from lapinfer.report.bandwidth import thread_scaling
from lapinfer.report.roofline import Roofline
from lapinfer.scale.network import LOCAL, Network, Shared

SMALL, LARGE = 512, 1 << 20
"""Bytes of messages."""
PAIRS = np.zeros((1, 2), np.int64)
ROUNDS, WARM = 200, 20
OPTION = "--network local"


def shared(machine: Roofline) -> Shared:
    """For processes of one thread each: `machine` was measured with one and with several."""
    one = machine.bandwidth[1]
    most = max(machine.bandwidth)
    memory = [1 + (machine.bandwidth[most] / one - 1) * (n - 1) / max(most - 1, 1) for n in range(1, most + 1)]
    processors = 1.0 if most == 1 else thread_scaling() * most / 2
    return Shared(max(processors, 1.0), tuple(max(value, 1.0) for value in memory))


def between_processes() -> Network:
    """Messages to processes of Ray and back, by a compiled graph, as experts on nodes get theirs (cluster/nodes.py)."""
    ray = start.imported(OPTION)
    with start.cluster(start.LOCAL):
        actors = [ray.remote(Echo).options(num_cpus=0).remote() for _ in range(2)]
        try:
            one, both = _seconds(ray, actors[:1], SMALL), _seconds(ray, actors, SMALL)
            large = _seconds(ray, actors[:1], LARGE)
        finally:
            for actor in actors:
                ray.kill(actor, no_restart=True)
    # A second node adds its message's end here to the way out, and its answer's to the way back.
    call = min(max((both - one) / 2, 0.0), one / 4)
    bandwidth = 2 * (LARGE - SMALL) / max(large - one, 1e-9)
    return Network(LOCAL, one / 2 - 2 * call, bandwidth, call, shared=True)


class Echo:
    """An actor that answers what it is asked, in messages of the same make as those of nodes with experts."""

    def answer(self, asked: tuple[int, np.ndarray, np.ndarray]) -> tuple[np.ndarray, int, int]:
        return asked[1].copy(), 0, 0


def _seconds(ray: Any, actors: list[Any], size: int) -> float:
    """Of a message to each of the actors and back, all at once: the median of many."""
    from ray.dag import InputNode, MultiOutputNode

    with InputNode() as asked:
        answers = [actor.answer.bind(asked[i]) for i, actor in enumerate(actors)]
        graph = MultiOutputNode(answers)
    compiled, messages, times = graph.experimental_compile(), [(0, np.zeros(size, np.uint8), PAIRS) for _ in actors], []
    try:
        for _ in range((ROUNDS if size == SMALL else ROUNDS // 4) + WARM):
            began = time.perf_counter()
            ray.get(compiled.execute(*messages))
            times.append(time.perf_counter() - began)
    finally:
        compiled.teardown()
    return median(times[WARM:])
