"""What is added to the loss, so that experts and leaves share the work and decisions become clear.

Letters: T tokens, E experts, P trees, L leaves of a tree. Each is a mean over tokens; a model adds those of its layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def squared_variation(x: Tensor) -> Tensor:
    """CV(x)²: the variance divided by the square of the mean; 0 when all are equal."""
    return x.var(correction=0) / (x.mean() ** 2 + 1e-10)


def importance(gates: Tensor) -> Tensor:
    """CV²(Σ over tokens of G), gates [T, E] with zeros for experts that were not chosen (1701.06538, equation 7)."""
    return squared_variation(gates.sum(dim=0))


def load(clean: Tensor, noisy: Tensor, spread: Tensor, top_k: int) -> Tensor:
    """CV²(Σ over tokens of P), a smooth count of tokens by expert (1701.06538, equations 8 to 11).

    P = Φ((clean − what must be beaten) / spread) is the probability that an expert is chosen when its noise is drawn
    anew: it must beat the k-th largest of the *others'* noisy logits. All [T, E]; spread is the noise's deviation.
    """
    if top_k == clean.shape[1]:  # all are always chosen
        return clean.new_zeros(())
    best = noisy.topk(top_k + 1, dim=1).values
    chosen = noisy > best[:, top_k:]
    threshold = torch.where(chosen, best[:, top_k:], best[:, top_k - 1 : top_k])
    return squared_variation(torch.special.ndtr((clean - threshold) / spread).sum(dim=0))


def switch(probabilities: Tensor, counts: Tensor) -> Tensor:
    """E · Σ f · P: share of choices times mean probability, 1 when even (2101.03961, equation 4, with any top_k).

    probabilities [T, E] sum to 1; counts [E].
    """
    return len(counts) * (counts / counts.sum() * probabilities.mean(dim=0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean of logsumexp(logits)², which keeps a router's logits small (2202.08906, equation 5)."""
    return torch.logsumexp(logits, dim=1).square().mean()


def decision_entropy(logits: Tensor) -> Tensor:
    """Mean over tokens and nodes of H(σ(z)), in nats (2308.14711, section 2.1, which sums; its code takes the mean).

    H = softplus(z) − z·σ(z): p·log p of p = σ(z) is NaN where σ(z) rounds to 0 or 1.
    """
    if not logits.numel():
        return logits.new_zeros(())
    return (softplus(logits) - logits * logits.sigmoid()).mean()


def leaf_balance(hard: Tensor, soft: Tensor) -> Tensor:
    """L · Σ f · P by tree, and their mean: share of tokens times mean mass of a leaf (2405.16836). [T, P, L] both."""
    return soft.shape[2] * (hard.mean(dim=0) * soft.mean(dim=0)).sum(dim=1).mean()
