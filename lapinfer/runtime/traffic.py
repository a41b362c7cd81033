"""What experts on other nodes cost: messages, bytes, waiting, and how evenly the nodes were loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapinfer.runtime.expert_nodes import Answer, Request
from lapinfer.spec import FeedForwardSpec


class Traffic:
    """Sums since the last `reset`, int64 [routed layers, nodes].

    messages: requests (each has an answer). sent, received: bytes of arrays in requests and answers. tokens: rows of
    activations. pairs: tokens of experts. ns: what nodes have computed. touched: bytes of weights that they have read,
    as their meters say. waited [routed layers]: nanoseconds from the first request of a layer to its last answer.
    slowest [routed layers]: of these, what the node that took longest has computed. busiest [routed layers]: pairs of
    the node that had the most.
    """

    def __init__(self, feed_forwards: Sequence[FeedForwardSpec], nodes: int):
        """feed_forwards: of the routed layers."""
        layers = len(feed_forwards)
        shape = layers, nodes
        self._active = np.array([ff.active for ff in feed_forwards], np.int64)
        self.messages, self.sent, self.received = (np.zeros(shape, np.int64) for _ in range(3))
        self.tokens, self.pairs, self.ns, self.touched = (np.zeros(shape, np.int64) for _ in range(4))
        self.waited, self.slowest, self.busiest = (np.zeros(layers, np.int64) for _ in range(3))

    def record(
        self, position: int, requests: Mapping[int, Request], answers: Mapping[int, Answer], waited: int
    ) -> None:
        """Add what one layer has asked in a step."""
        for node, request in requests.items():
            answer, place = answers[node], (position, node)
            self.messages[place] += 1
            self.sent[place] += request.nbytes
            self.received[place] += answer.rows.nbytes
            self.tokens[place] += len(request.rows)
            self.pairs[place] += len(request.pairs)
            self.ns[place] += answer.ns
            self.touched[place] += answer.touched
        self.waited[position] += waited
        self.slowest[position] += max(answer.ns for answer in answers.values())
        self.busiest[position] += max(len(request.pairs) for request in requests.values())

    def reset(self) -> None:
        for name, values in vars(self).items():
            if name != "_active":
                values[:] = 0

    def stats(self) -> dict[str, Any]:
        """Sums over layers under stable names: numbers, and lists with one for each node.

        tokens: that were run. imbalance: pairs of the busiest node, divided by the mean over all nodes: 1 is even.
        """
        nodes, pairs = self.pairs.shape[1], int(self.pairs.sum())
        return {
            "nodes": nodes,
            "tokens": int(self.pairs[0].sum() // self._active[0]),
            "messages": int(self.messages.sum()),
            "bytes_sent": int(self.sent.sum()),
            "bytes_received": int(self.received.sum()),
            "seconds_waited": int(self.waited.sum()) / 1e9,
            "seconds_of_slowest": int(self.slowest.sum()) / 1e9,
            "imbalance": int(self.busiest.sum()) * nodes / pairs if pairs else 1.0,
            "node_pairs": self.pairs.sum(axis=0).tolist(),
            "node_tokens": self.tokens.sum(axis=0).tolist(),
            "node_seconds": (self.ns.sum(axis=0) / 1e9).tolist(),
            "node_bytes": self.touched.sum(axis=0).tolist(),
        }

    def line(self) -> str:
        """The same as a line of text, for a token."""
        stats = self.stats()
        n = max(stats["tokens"], 1)
        return (
            f"experts on {stats['nodes']} nodes: {stats['messages'] / n:.1f} messages, "
            f"{stats['bytes_sent'] / n / 1e3:.1f} kB out and {stats['bytes_received'] / n / 1e3:.1f} kB back a token; "
            f"{1e3 * stats['seconds_waited'] / n:.2f} ms of waiting, of which the slowest node has computed "
            f"{1e3 * stats['seconds_of_slowest'] / n:.2f}; the busiest had {stats['imbalance']:.2f} times the mean"
        )
