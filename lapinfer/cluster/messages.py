"""How long messages to processes of Ray take: by a compiled graph, as nodes with experts get theirs (nodes.py)."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from lapinfer.cluster.start import LOCAL, cluster, imported

PAIRS = np.zeros((1, 2), np.int64)
ROUNDS, WARM = 200, 20
LONG = 1 << 16
"""Bytes from which on a quarter of the rounds will do."""


class Echo:
    """An actor that answers what it is asked, in messages of the same make as those of nodes with experts."""

    def answer(self, asked: tuple[int, np.ndarray, np.ndarray]) -> tuple[np.ndarray, int, int]:
        return asked[1].copy(), 0, 0


def round_trips(asked: list[tuple[int, int]], option: str) -> list[float]:
    """Seconds of messages to processes of this computer and back, for each (processes, bytes): all at once, the median.

    option: what Ray is needed for.
    """
    ray = imported(option)
    with cluster(LOCAL):
        actors = [ray.remote(Echo).options(num_cpus=0).remote() for _ in range(max(n for n, _ in asked))]
        try:
            return [_seconds(ray, actors[:n], size) for n, size in asked]
        finally:
            for actor in actors:
                ray.kill(actor, no_restart=True)


def _seconds(ray: Any, actors: list[Any], size: int) -> float:
    from ray.dag import InputNode, MultiOutputNode

    with InputNode() as asked:
        answers = [actor.answer.bind(asked[i]) for i, actor in enumerate(actors)]
        graph = MultiOutputNode(answers)
    messages, times = [(0, np.zeros(size, np.uint8), PAIRS) for _ in actors], []
    compiled = graph.experimental_compile()
    try:
        for _ in range((ROUNDS if size < LONG else ROUNDS // 4) + WARM):
            began = time.perf_counter()
            ray.get(compiled.execute(*messages))
            times.append(time.perf_counter() - began)
    finally:
        compiled.teardown()
    return median(times[WARM:])
