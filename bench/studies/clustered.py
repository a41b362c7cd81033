"""The clustered classification task of arXiv 2208.02813, setting 1, and a mixture of experts that learns it.

A sample is four patches of 50 numbers in random order: a feature ±α·v of its cluster, whose sign is the label; the
centre β·c of its cluster; a feature ±γ·v of another cluster, whose sign means nothing; and noise. One expert cannot
learn what the sign of each feature means for all clusters; a router that finds the centres makes it easy.

What the paper's text leaves open is as in the authors' public code (uclaml/MoE): α from U(0.5, 2), β from U(1, 2), γ
from U(0.5, 3); v and c orthonormal; noise of deviation 1/√50 a number, so that its patch has a length of 1, too;
everything times 10; 8 filters a class and expert; rates of 0.001 for experts and 0.1 for the router. Not as there: the
chosen expert is weighed by its softmax probability (there by the noisy logit itself), the loss is that of the logits
(there a second softmax comes before it), all trials have the same number of steps (there the loss decides when to
stop), and there is no noise when the test set is classified.

Letters: N samples, P patches, D numbers of a patch, E experts, J filters of a class.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.studies.results import described_load
from lapinfer.train import penalties
from lapinfer.train.routed import max_over_mean

PATCHES, WIDTH, CLUSTERS, EXPERTS, FILTERS = 4, 50, 4, 8, 8
SCALE = 10.0
SMALL = 0.001
"""Factor of experts' first weights; the deviation of routers that have no noise, which could not begin at zero."""
EXPERT_RATE, ROUTER_RATE = 0.001, 0.1


@dataclass(frozen=True, slots=True)
class Samples:
    """x float32 [N, P, D]; label 0 or 1, and cluster, int64 [N]."""

    x: Tensor
    label: Tensor
    cluster: Tensor


def directions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(features, centres), orthonormal, [clusters, D] each."""
    basis = np.linalg.qr(rng.standard_normal((WIDTH, 2 * CLUSTERS)))[0].T
    return basis[:CLUSTERS], basis[CLUSTERS:]


def draw(rng: np.random.Generator, features: np.ndarray, centres: np.ndarray, count: int) -> Samples:
    """`count` samples of the task."""
    sign, cluster = rng.choice([-1, 1], count), rng.integers(0, CLUSTERS, count)
    other = (cluster + rng.integers(1, CLUSTERS, count)) % CLUSTERS
    signal = (sign * rng.uniform(0.5, 2, count))[:, None] * features[cluster]
    centre = rng.uniform(1, 2, count)[:, None] * centres[cluster]
    decoy = (rng.choice([-1, 1], count) * rng.uniform(0.5, 3, count))[:, None] * features[other]
    noise = rng.normal(0, WIDTH**-0.5, (count, WIDTH))
    patches = rng.permuted(np.tile(np.arange(PATCHES), (count, 1)), axis=1)
    x = np.stack([signal, centre, decoy, noise], axis=1)[np.arange(count)[:, None], patches]
    return Samples(
        torch.from_numpy((SCALE * x).astype(np.float32)), torch.from_numpy((sign + 1) // 2), torch.from_numpy(cluster)
    )


class ClusteredMoE(nn.Module):
    """Top-1 over E experts: two-layer convolutions with fixed output weights, whose filters are cubed when nonlinear.

    The router is linear in the sum of patches. With noise it begins at zero, and U[0, 1) is added to each logit in
    training; without, it begins small and random, since zeros would be told apart by the order of experts alone.
    """

    def __init__(self, nonlinear: bool, noise: bool) -> None:
        super().__init__()
        self.nonlinear, self.noise = nonlinear, noise
        bound = WIDTH**-0.5
        self.filters = nn.Parameter(SMALL * torch.empty(EXPERTS, 2 * FILTERS, WIDTH).uniform_(-bound, bound))
        self.bias = nn.Parameter(SMALL * torch.empty(EXPERTS, 2 * FILTERS).uniform_(-bound, bound))
        self.router = nn.Parameter(torch.zeros(EXPERTS, WIDTH) if noise else SMALL * torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, P, D] -> (class logits [N, 2], router probabilities [N, E], chosen experts [N])."""
        logits = x.sum(dim=1) @ self.router.T
        if self.training and self.noise:
            logits = logits + torch.rand_like(logits)
        probabilities = logits.softmax(dim=1)
        chosen = logits.argmax(dim=1)
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=EXPERTS).tolist()
        parts = zip(x[order].split(counts), self.filters.unbind(), self.bias.unbind(), strict=True)
        outputs = torch.cat([self._expert(part, filters, bias) for part, filters, bias in parts])[order.argsort()]
        return outputs * probabilities.gather(1, chosen[:, None]), probabilities, chosen

    def _expert(self, x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
        """[n, P, D] -> [n, 2]: Σ over patches and filters of a class of σ(w · patch + b)."""
        hidden = x @ filters.T + bias
        hidden = hidden**3 if self.nonlinear else hidden
        return hidden.sum(dim=1).view(len(x), 2, FILTERS).sum(dim=2)


def step(model: ClusteredMoE, samples: Samples, weights: dict[str, float]) -> tuple[float, Tensor]:
    """One update by all samples: normalised gradients for each expert, plain ones for the router.

    The loss, and samples by expert [E], before the update.

    weights: of the penalties `importance` and `switch`.
    """
    logits, probabilities, chosen = model(samples.x)
    loss = cross_entropy(logits, samples.label)
    counts = torch.bincount(chosen, minlength=EXPERTS).float()
    total = loss
    if "importance" in weights:
        gates = torch.zeros_like(probabilities).scatter(1, chosen[:, None], probabilities.gather(1, chosen[:, None]))
        total = total + weights["importance"] * penalties.importance(gates)
    if "switch" in weights:
        total = total + weights["switch"] * penalties.switch(probabilities, counts)
    model.zero_grad()
    total.backward()
    with torch.no_grad():
        assert model.filters.grad is not None
        assert model.bias.grad is not None
        assert model.router.grad is not None
        norm = (model.filters.grad.square().sum(dim=(1, 2)) + model.bias.grad.square().sum(dim=1)).sqrt()
        rate = torch.where(norm > 0, EXPERT_RATE / norm, 0.0)  # an expert without samples stays as it is
        model.filters.sub_(rate[:, None, None] * model.filters.grad)
        model.bias.sub_(rate[:, None] * model.bias.grad)
        model.router.sub_(ROUTER_RATE * model.router.grad)
    return loss.item(), counts


@dataclass(frozen=True, slots=True)
class Caps:
    """samples: to train on, and as many to test; steps of all of them; weights of the penalties."""

    samples: int = 16_000
    steps: int = 400
    every: int = 5
    importance: float = 0.01
    switch: float = 0.01


FULL, QUICK = Caps(), Caps(samples=500, steps=10)


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train one model; it is judged at the step of the lowest training loss."""
    c = QUICK if arguments["quick"] else FULL
    rng = np.random.default_rng(arguments["seed"])
    torch.manual_seed(arguments["seed"])
    features, centres = directions(rng)
    train, test = (draw(rng, features, centres, c.samples) for _ in range(2))
    model = ClusteredMoE(arguments["task"] == "nonlinear", arguments["noise"])
    weights = {"importance": c.importance, "switch": c.switch} if arguments["penalty"] else {}
    least, best, best_step = math.inf, copy.deepcopy(model.state_dict()), 0
    steps, max_load = [], []
    for number in range(1, c.steps + 1):
        before = copy.deepcopy(model.state_dict())
        loss, load = step(model, train, weights)
        if loss < least:
            least, best, best_step = loss, before, number
        if number % c.every == 0:
            steps.append(number)
            max_load.append(max_over_mean(load))
    model.load_state_dict(best)
    return {**judge(model, test), "loss": least, "step": best_step, "steps": steps, "max_load_by_step": max_load}


@torch.no_grad()
def judge(model: ClusteredMoE, samples: Samples) -> dict[str, Any]:
    """Accuracy, loads, and samples by expert and cluster [E, clusters]; used_clusters: those that are some expert's
    most frequent one."""
    model.eval()
    logits, probabilities, chosen = model(samples.x)
    model.train()
    counts = torch.zeros(EXPERTS, CLUSTERS, dtype=torch.long)
    counts.index_put_((chosen, samples.cluster), torch.ones_like(chosen), accumulate=True)
    entropy = -torch.xlogy(probabilities, probabilities).sum(dim=1).mean()
    load = counts.sum(dim=1).float()
    return {
        "accuracy": (logits.argmax(dim=1) == samples.label).float().mean().item(),
        "layers": [described_load(load, 1, entropy.item())], "by_cluster": counts.tolist(),
        "used_clusters": len(set(counts[load > 0].argmax(dim=1).tolist())),
    }  # fmt: skip
