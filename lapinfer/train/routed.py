"""Layers that choose experts or leaves for each token: what they remember of a batch, and what is logged of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Record:
    """Of one batch and layer.

    load: tokens per expert or leaf [E]. entropy: mean, in nats, of the decisions of all nodes, or of the router's
    probabilities. mass: mean share of the mixture that the chosen leaf, or chosen experts, have. penalty: what is added
    to the loss; terms: its parts before they were weighted.
    """

    load: Tensor
    entropy: Tensor
    mass: Tensor
    penalty: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Routed(nn.Module):
    """A layer that chooses. record: of its last batch; there is none before the first."""

    record: Record

    def remember(
        self, load: Tensor, entropy: Tensor, mass: Tensor, terms: dict[str, tuple[float, Tensor]],
        hardening: float = 0.0,
    ) -> None:  # fmt: skip
        """Make the record of a batch. terms: (weight, value) of parts of the penalty; hardening: weight of entropy."""
        penalty = sum((weight * term for weight, term in terms.values()), load.new_zeros(())) + hardening * entropy
        values = {name: term.detach() for name, (_, term) in terms.items()}
        self.record = Record(load, entropy.detach(), mass.detach(), penalty, values)

    def set_progress(self, done: float) -> None:
        """Set what is on a schedule, for the share `done` of all steps."""

    def after_step(self) -> None:
        """What follows an update of the weights."""


def routed_layers(model: nn.Module) -> list[Routed]:
    """The layers that choose, in the order of the model."""
    return [module for module in model.modules() if isinstance(module, Routed)]


def penalty(model: nn.Module) -> Tensor:
    """What the layers add to the loss of the batch that was just computed."""
    return sum((layer.record.penalty for layer in routed_layers(model)), torch.zeros(()))


@dataclass(slots=True)
class Balance:
    """Sums of a layer's records over batches, for a line of figures."""

    load: Tensor = field(default_factory=lambda: torch.zeros(()))
    entropy: float = 0.0
    mass: float = 0.0
    batches: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, record: Record) -> None:
        self.load = self.load + record.load
        self.entropy += float(record.entropy)
        self.mass += float(record.mass)
        self.batches += 1
        for name, term in record.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(term)

    def as_dict(self) -> dict[str, Any]:
        """max_load: the largest over the mean load; dead: experts or leaves without a token; the rest are means."""
        n = self.batches
        return {
            "max_load": max_over_mean(self.load), "dead": int((self.load == 0).sum()),
            "entropy": self.entropy / n, "mass": self.mass / n, **{k: v / n for k, v in self.terms.items()},
        }  # fmt: skip


def max_over_mean(load: Tensor) -> float:
    """1 when all experts have the same load; their number divided by k when k of them have all."""
    return float(load.max() / load.mean())


def balances_of(model: nn.Module) -> list[Balance]:
    """An empty balance for each layer that chooses."""
    return [Balance() for _ in routed_layers(model)]


def add_records(balances: Sequence[Balance], model: nn.Module) -> None:
    """Add each layer's record of its last batch. balances: one per layer, or none at all."""
    if balances:
        for balance, layer in zip(balances, routed_layers(model), strict=True):
            balance.add(layer.record)
