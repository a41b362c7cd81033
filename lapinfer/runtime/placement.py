"""Which node has which experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lapinfer.errors import InputError
from lapinfer.spec import FeedForwardSpec


@dataclass(frozen=True, slots=True)
class Placement:
    """nodes: how many there are. node_of: by routed layer, the node of each expert, int64 [E], shared ones last."""

    nodes: int
    node_of: tuple[np.ndarray, ...]

    def experts(self, node: int) -> list[np.ndarray]:
        """The experts of a node, by routed layer."""
        return [np.flatnonzero(of_layer == node) for of_layer in self.node_of]


def expected_loads(ff: FeedForwardSpec) -> np.ndarray:
    """Tokens of an expert for each token of a step, float64 [E]: routed ones alike, shared ones get all."""
    assert ff.router is not None
    loads = np.full(ff.experts, ff.router.top_k / ff.router.n_experts)
    loads[ff.router.n_experts :] = 1.0
    return loads


def placed(
    feed_forwards: Sequence[FeedForwardSpec], nodes: int, loads: Sequence[np.ndarray] | None = None
) -> Placement:
    """Spread the experts of each routed layer: as many for each node as for the others, and as much work, if it can be.

    feed_forwards: of the routed layers. loads: tokens that each expert gets, by layer, as far as known.
    The experts with the most work come first, each to the node that has the least. InputError where a node would have
    none.
    """
    node_of = []
    for position, ff in enumerate(feed_forwards):
        if nodes > ff.experts:
            raise InputError(
                f"expert_nodes: expected at most {ff.experts}, which is how many experts a layer has, got {nodes}"
            )
        work = expected_loads(ff) if loads is None else loads[position]
        node_of.append(spread(work, nodes, position))
    return Placement(nodes, tuple(node_of))


def spread(work: np.ndarray, nodes: int, first: int) -> np.ndarray:
    """The node of each expert of a layer. Of nodes with as little work the first one from `first` on: what is left over
    does not always meet the same."""
    most = -(-len(work) // nodes)
    of, sums, counts = np.zeros(len(work), np.int64), [0.0] * nodes, [0] * nodes
    order = [(first + i) % nodes for i in range(nodes)]
    for expert in np.argsort(-work, kind="stable"):
        node = min((n for n in order if counts[n] < most), key=lambda n: (sums[n], counts[n]))
        of[expert] = node
        sums[node] += float(work[expert])
        counts[node] += 1
    return of


def resident_bytes(strides: Mapping[int, int], placement: Placement) -> list[int]:
    """Bytes of experts that each node has. strides: bytes of an expert, by position of the routed layer."""
    return [
        sum(len(experts) * strides[position] for position, experts in enumerate(placement.experts(node)))
        for node in range(placement.nodes)
    ]
