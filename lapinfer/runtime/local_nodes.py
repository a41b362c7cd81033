"""Nodes with experts that are threads of this process: for tests, and as the reference of those elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from lapinfer.parallel import in_threads
from lapinfer.runtime.expert_node import ExpertNode
from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.runtime.ops import Limits, Weights
from lapinfer.runtime.placement import Placement
from lapinfer.spec import ModelSpec


class LocalNodes:
    """Each node has a runner, and so a team of threads, of its own."""

    def __init__(self, spec: ModelSpec, weights: Weights, limits: Limits, placement: Placement):
        self.placement = placement
        self.nodes = [ExpertNode(spec, weights, limits, placement.experts(node)) for node in range(placement.nodes)]

    def ask(self, requests: Mapping[int, Request]) -> Mapping[int, Answer]:
        """Answers are views of the nodes' buffers."""
        answers = in_threads(lambda node: self.nodes[node].answer(requests[node]), requests, len(requests))
        return dict(zip(requests, answers, strict=True))

    def resident(self) -> list[int]:
        return [0] * len(self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
