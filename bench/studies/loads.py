"""How even the loads of experts are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def max_over_mean(load: Tensor) -> float:
    """1 when all experts have the same load; their number divided by k when k of them have all."""
    return float(load.max() / load.mean())


def described(load: Tensor, top_k: int, entropy: float) -> dict[str, Any]:
    """Figures of the tokens by expert [E], of which each token has `top_k`; entropy: of the router's probabilities.

    share: of the tokens that the busiest expert gets. effective: exp of the entropy of the loads, E when they are even.
    """
    p = load / load.sum()
    return {
        "load": [int(n) for n in load], "share": float(top_k * p.max()), "max_load": max_over_mean(load),
        "effective": float(torch.exp(-torch.xlogy(p, p).sum())), "dead": int((load == 0).sum()), "entropy": entropy,
    }  # fmt: skip
