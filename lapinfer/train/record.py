"""What a routed layer remembers of its last batch, and what is logged of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Record:
    """Of one batch and layer.

    load: tokens by expert or leaf [E]. entropy: mean, in nats, of the decisions of all nodes, or of the router's
    probabilities. mass: mean share of the mixture that the chosen leaf, or chosen experts, have. penalty: what is added
    to the loss; terms: its parts before they were weighted.
    """

    load: Tensor
    entropy: Tensor
    mass: Tensor
    penalty: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


def weighted(terms: dict[str, tuple[float, Tensor]], like: Tensor) -> Tensor:
    """Σ weight · term, a zero like `like` when there are none."""
    total = like.new_zeros(())
    for weight, term in terms.values():
        total = total + weight * term
    return total


@dataclass(slots=True)
class Balance:
    """Sums of a layer's records over batches, for a line of figures."""

    load: Tensor | None = None
    entropy: float = 0.0
    mass: float = 0.0
    batches: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, record: Record) -> None:
        self.load = record.load.clone() if self.load is None else self.load + record.load
        self.entropy += float(record.entropy)
        self.mass += float(record.mass)
        self.batches += 1
        for name, term in record.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(term)

    def as_dict(self) -> dict[str, Any]:
        """max_load: the largest over the mean load; dead: experts or leaves without a token; the rest are means."""
        assert self.load is not None
        n = self.batches
        return {
            "max_load": float(self.load.max() / self.load.mean()), "dead": int((self.load == 0).sum()),
            "entropy": self.entropy / n, "mass": self.mass / n, **{k: v / n for k, v in self.terms.items()},
        }  # fmt: skip
