"""What a model asks of nodes that have its experts, and what they answer: the same for threads and for other computers.

A request has the activations of some tokens as the norm has packed them, each once, and which expert is to be applied
to which of them. The answer has a row for each of these pairs: what the expert gives, with its bias, not weighed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lapinfer.runtime.placement import Placement


@dataclass(frozen=True, slots=True)
class Request:
    """position: of the layer, among the routed ones. rows: activations, uint8 [tokens, bytes of a token]
    (kernels/operands.ROW_GROUP_BYTES). pairs: int64 [P, 2], rows of operands.PAIR, in the order of the experts.

    Both are views of buffers that the next request overwrites.
    """

    position: int
    rows: np.ndarray
    pairs: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.pairs.nbytes


@dataclass(frozen=True, slots=True)
class Answer:
    """rows: float32 [P, ≥ D], valid until the node is asked again. ns: nanoseconds that the node has computed.
    touched: bytes of weights that it has read, as its meter says."""

    rows: np.ndarray
    ns: int
    touched: int


class ExpertNodes(Protocol):
    """Nodes that have the experts of a model."""

    placement: Placement

    def ask(self, requests: Mapping[int, Request]) -> Mapping[int, Answer]:
        """Send each of these nodes its request, all at once, and wait for all answers."""
        ...

    def resident(self) -> list[int]:
        """Bytes of memory that each node takes; 0 where that is not told apart from this process's."""
        ...

    def close(self) -> None: ...
