"""Digits classified by one feed-forward: dense, a mixture of experts, or a tree; trained as papers train them.

Letters: N images, D pixels, w neurons in all (a tree's leaves, a mixture's experts), l of them a leaf or expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.studies.mnist import pixels
from lapinfer.spec import FeedForwardSpec, RouterSpec, TreeSpec
from lapinfer.train.config import Mixture, Trees
from lapinfer.train.fff import FFF, soft_forward
from lapinfer.train.moe import MoE
from lapinfer.train.record import Balance

CLASSES = 10
HELD_OUT = 0.1
"""The share of images that is not trained on, but chooses the epoch."""
AT_ONCE = 2048
"""Images that are evaluated together."""
TREES: dict[str, tuple[Trees, float]] = {
    "soft": (Trees(forward="soft", balance=0.0), 3.0),
    "straight": (Trees(forward="straight_through", balance=0.1), 0.0),
}
"""How trees are trained, and h: as in arXiv 2308.14711, and by the chosen leaf with the gradient of the mixture."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pixels float32 [N, D] and labels int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: Tensor) -> Labelled:
        return Labelled(self.x[which], self.y[which])


def labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    """Bytes [N, 28, 28] and [N] as networks take them."""
    return Labelled(torch.from_numpy(pixels(images)), torch.from_numpy(labels.astype(np.int64)))


def divided(images: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Images to train on and held-out ones, nine to one, drawn by the seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = max(round(len(images) * HELD_OUT), 1)
    return images.take(order[held_out:]), images.take(order[:held_out])


class Dense(nn.Module):
    """down(relu(up(x)))."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(inputs, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, 10]."""
        return self.down(self.up(x).relu())


Network = Dense | MoE | FFF


def tree(inputs: int, width: int, leaf: int, options: Trees) -> FFF:
    """A tree of w / l plain leaves; options: how it is trained (its sizes are set here)."""
    depth = (width // leaf).bit_length() - 1
    assert leaf << depth == width
    sized = replace(options, depth=depth, leaf_width=leaf, gated=False, activation="relu", bias=True)
    ff = FeedForwardSpec(leaf, "relu", False, True, TreeSpec(depth, node_bias=True))
    network = FFF(ff, inputs, sized, CLASSES)
    _begin(network)
    return network


def mixture(inputs: int, width: int, expert: int, top_k: int, options: Mixture) -> MoE:
    """A mixture of w / l plain experts; options: how they are balanced (its sizes are set here)."""
    E = width // expert
    sized = replace(options, num_experts=E, num_experts_per_tok=top_k, moe_intermediate_size=expert)
    ff = FeedForwardSpec(expert, "relu", False, True, RouterSpec(E, top_k, normalise=True))
    network = MoE(ff, inputs, sized, CLASSES)
    _begin(network)
    if network.noise is not None:  # the noise decides first (1701.06538, appendix A)
        nn.init.zeros_(network.router.weight)
        nn.init.zeros_(network.noise.weight)
    return network


def _begin(network: FFF | MoE) -> None:
    """Leaves and experts begin as nn.Linear does: uniform within 1 / sqrt(inputs), weights and biases."""
    for name, parameter in network.named_parameters(recurse=False):
        matrix = getattr(network, name.removesuffix("_bias"))
        bound = matrix.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained, until the watched accuracy has not risen for `patience` epochs, or for `epochs`.

    halve_after: epochs without a better accuracy in training, after which the rate is halved; 0: never. hardening: h of
    trees, from the first step on. look_every: epochs between looks at the accuracy of the images trained on.
    """

    optimizer: Literal["sgd", "adam"]
    rate: float
    batch: int
    epochs: int
    patience: int
    halve_after: int = 0
    hardening: float = 0.0
    look_every: int = 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """epoch: the one that was best on the watched images, whose weights the network has now, and how good it was;
    memorised: the best accuracy on the images trained on, among the epochs looked at, and that epoch. All of chosen
    leaves and experts, without noise. why: what ended the training."""

    epoch: int
    watched: float
    memorised: float
    memorised_epoch: int
    epochs: int
    why: Literal["patience", "cap", "perfect", "diverged"]


def fit(network: Network, images: Labelled, watched: Labelled, recipe: Recipe, seed: int) -> Fitted:
    """Train; the network then has the weights of the epoch that was best on `watched` (the first of equal ones)."""
    torch.manual_seed(seed)
    optimizer = _optimizer(network, recipe)
    best, best_epoch, state = -1.0, 0, {}
    memorised, memorised_epoch = 0.0, 0
    seen, seen_epoch = -1.0, 0  # accuracy in training, and the epoch of its last rise or of the last halving
    why, epoch = "cap", 0
    if isinstance(network, FFF):
        network.hardening = recipe.hardening
    for epoch in range(1, recipe.epochs + 1):
        loss, right = _epoch(network.train(), images, optimizer, recipe.batch)
        if not math.isfinite(loss):
            why = "diverged"
            break
        found = accuracy(network, watched)
        if found > best:
            best, best_epoch = found, epoch
            state = {name: value.clone() for name, value in network.state_dict().items()}
        if right > seen:
            seen, seen_epoch = right, epoch
        elif recipe.halve_after and epoch - seen_epoch >= recipe.halve_after:
            seen_epoch = epoch
            for group in optimizer.param_groups:
                group["lr"] /= 2
        out_of_patience = epoch - best_epoch >= recipe.patience
        last = best == 1.0 or out_of_patience or epoch == recipe.epochs
        if epoch % recipe.look_every == 0 or last or epoch == best_epoch == 1:
            known = found if watched is images else accuracy(network, images)
            if known > memorised:
                memorised, memorised_epoch = known, epoch
        if best == 1.0 or out_of_patience:
            why = "perfect" if best == 1.0 else "patience"
            break
    if state:
        network.load_state_dict(state)
    network.eval()
    return Fitted(best_epoch, max(best, 0.0), memorised, memorised_epoch, epoch, why)


def _optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), recipe.rate, fused=True)
    return torch.optim.Adam(network.parameters(), recipe.rate, fused=True)


def _epoch(network: Network, images: Labelled, optimizer: torch.optim.Optimizer, batch: int) -> tuple[float, float]:
    """All images once, in a new order: the sum of the losses, and the accuracy before each step's update."""
    total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for which in torch.randperm(len(images)).split(batch):
        y = images.y[which]
        logits = network(images.x[which])
        loss = cross_entropy(logits, y)
        if not isinstance(network, Dense):
            assert network.record is not None
            loss = loss + network.record.penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        right += (logits.detach().argmax(dim=1) == y).sum()
    return float(total), float(right) / len(images)


@torch.no_grad()
def predictions(network: Network, x: Tensor, balance: Balance | None = None) -> Tensor:
    """The likeliest class of each image [N]; of chosen leaves and experts, which are counted in `balance`."""
    network.eval()
    found = []
    for part in x.split(AT_ONCE):
        found.append(network(part).argmax(dim=1))
        if balance is not None and not isinstance(network, Dense) and network.record is not None:
            balance.add(network.record)
    return torch.cat(found)


def accuracy(network: Network, images: Labelled) -> float:
    """Share of images whose class is found."""
    return float((predictions(network, images.x) == images.y).double().mean())


def tested(network: Network, test: Labelled) -> tuple[dict[str, Any], Tensor]:
    """Figures of images that were neither trained on nor chosen by, and the classes that were found.

    accuracy; of trees `soft`, that of the mixture; of whatever chooses, max_load, dead, entropy and mass.
    """
    balance = Balance()
    found = predictions(network, test.x, balance)
    figures: dict[str, Any] = {"accuracy": float((found == test.y).double().mean())}
    if balance.load is not None:
        figures |= balance.as_dict()
    if isinstance(network, FFF):
        with soft_forward(network):
            figures["soft"] = accuracy(network, test)
    return figures, found
