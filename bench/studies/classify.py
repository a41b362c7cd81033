"""Images classified by networks with dense feed-forwards, mixtures of experts, or trees; trained as papers train them.

Letters: N images, D pixels, w neurons in all (a tree's leaves, a mixture's experts), l of them per leaf or expert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lapinfer.spec import Activation, FeedForwardSpec, RouterSpec, TreeSpec
from lapinfer.train.activations import ACTIVATIONS
from lapinfer.train.config import Mixture, Trees
from lapinfer.train.fff import FFF, soft_forward, trees_of
from lapinfer.train.moe import MoE
from lapinfer.train.routed import Balance, add_records, balances_of, penalty

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
MIXTURE = Mixture(noise=True, importance=0.1, load=0.1, switch=0.0, z_loss=0.0)
TOP_K = 2


# ---- images ----


@dataclass(frozen=True, slots=True)
class Labelled:
    """Inputs float32 [N, …] and labels int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor | np.ndarray) -> Labelled:
        return Labelled(self.x[rows], self.y[rows])


def pixels(images: np.ndarray) -> np.ndarray:
    """Bytes [N, …] as float32 [N, D] from 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    """Bytes [N, 1, 28, 28] and labels as networks of one feed-forward take them."""
    return Labelled(torch.from_numpy(pixels(images)), torch.from_numpy(labels))


def divided(images: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Images to train on and held-out ones, nine to one, drawn by the seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = max(round(len(images) * HELD_OUT), 1)
    return images.take(order[held_out:]), images.take(order[:held_out])


# ---- networks ----


class Dense(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, inputs: int, width: int, out: int = CLASSES, activation: Activation = "relu") -> None:
        super().__init__()
        self.up, self.down = nn.Linear(inputs, width), nn.Linear(width, out)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, out]."""
        return self.down(self.activation(self.up(x)))


Network = Dense | MoE | FFF


def plain_tree(
    inputs: int, width: int, leaf: int, options: Trees, out: int = CLASSES, activation: Activation = "relu"
) -> FFF:
    """A tree of w / l plain leaves, without weights; options: how it is trained (its sizes are set here)."""
    depth = (width // leaf).bit_length() - 1
    assert leaf << depth == width
    sized = replace(options, depth=depth, leaf_width=leaf, gated=False, activation=activation, bias=True)
    return FFF(FeedForwardSpec(leaf, activation, False, True, TreeSpec(depth, node_bias=True)), inputs, sized, out)


def tree(inputs: int, width: int, leaf: int, options: Trees) -> FFF:
    """A tree of w / l plain leaves that begins as linear layers do."""
    network = plain_tree(inputs, width, leaf, options)
    _begin_as_linear(network)
    return network


def mixture(inputs: int, width: int, expert: int, top_k: int, options: Mixture) -> MoE:
    """A mixture of w / l plain experts; options: how they are balanced (its sizes are set here)."""
    E = width // expert
    sized = replace(options, num_experts=E, num_experts_per_tok=top_k, moe_intermediate_size=expert)
    ff = FeedForwardSpec(expert, "relu", False, True, RouterSpec(E, top_k, normalise=True))
    network = MoE(ff, inputs, sized, CLASSES)
    _begin_as_linear(network)
    if network.noise is not None:  # the noise decides first (1701.06538, appendix A)
        nn.init.zeros_(network.router.weight)
        nn.init.zeros_(network.noise.weight)
    return network


def _begin_as_linear(network: FFF | MoE) -> None:
    """Leaves and experts begin as nn.Linear does: uniform within 1 / sqrt(inputs), weights and biases."""
    for name, parameter in network.named_parameters(recurse=False):
        matrix = getattr(network, name.removesuffix("_bias"))
        bound = matrix.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound)


def network_of(arm: str, inputs: int, width: int, part: int) -> Network:
    """`ff`, `moe`, or an arm of TREES; part: neurons of an expert or leaf."""
    if arm == "ff":
        return Dense(inputs, width)
    if arm == "moe":
        return mixture(inputs, width, part, TOP_K, MIXTURE)
    return tree(inputs, width, part, TREES[arm][0])


# ---- training ----


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

    def as_dict(self, arm: str) -> dict[str, Any]:
        """For a trial's arguments, with the hardening of its arm."""
        return asdict(self) | {"hardening": TREES[arm][1] if arm in TREES else 0.0}


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
    optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = optimizers[recipe.optimizer](network.parameters(), recipe.rate, fused=True)
    best, best_epoch, state = -1.0, 0, {}
    memorised, memorised_epoch = 0.0, 0
    training, plateau = -1.0, 0  # best accuracy in training, and the epoch of its last rise or of the last halving
    why, epoch = "cap", 0
    for layer in trees_of(network):
        layer.hardening = recipe.hardening
    for epoch in range(1, recipe.epochs + 1):
        loss, right = train_epoch(network.train(), images, optimizer, recipe.batch)
        if not math.isfinite(loss):
            why = "diverged"
            break
        score = accuracy(network, watched)
        if score > best:
            best, best_epoch = score, epoch
            state = {name: value.clone() for name, value in network.state_dict().items()}
        if right > training:
            training, plateau = right, epoch
        elif recipe.halve_after and epoch - plateau >= recipe.halve_after:
            plateau = epoch
            for group in optimizer.param_groups:
                group["lr"] /= 2
        out_of_patience = epoch - best_epoch >= recipe.patience
        last = best == 1.0 or out_of_patience or epoch == recipe.epochs
        if epoch % recipe.look_every == 0 or last or epoch == best_epoch == 1:
            seen = score if watched is images else accuracy(network, images)
            if seen > memorised:
                memorised, memorised_epoch = seen, epoch
        if best == 1.0 or out_of_patience:
            why = "perfect" if best == 1.0 else "patience"
            break
    if state:
        network.load_state_dict(state)
    network.eval()
    return Fitted(best_epoch, max(best, 0.0), memorised, memorised_epoch, epoch, why)


def train_epoch(
    network: nn.Module, images: Labelled, optimizer: torch.optim.Optimizer, batch: int
) -> tuple[float, float]:
    """All images once, in a new order: the sum of the losses, and the accuracy before each step's update."""
    total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for rows in torch.randperm(len(images)).split(batch):
        y = images.y[rows]
        logits = network(images.x[rows])
        loss = cross_entropy(logits, y) + penalty(network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        right += (logits.detach().argmax(dim=1) == y).sum()
    return float(total), float(right) / len(images)


# ---- judging ----


@torch.no_grad()
def predictions(
    network: nn.Module, x: Tensor, balances: Sequence[Balance] = (), at_once: int = AT_ONCE
) -> Tensor:  # fmt: skip
    """The likeliest class of each image [N]; of chosen leaves and experts, which are counted in `balances`."""
    network.eval()
    classes = []
    for part in x.split(at_once):
        classes.append(network(part).argmax(dim=1))
        add_records(balances, network)
    return torch.cat(classes)


def share_right(classes: Tensor, labels: Tensor) -> float:
    """Share of images whose class is the label."""
    return float((classes == labels).double().mean())


def accuracy(network: nn.Module, images: Labelled) -> float:
    """Share of images whose class is found."""
    return share_right(predictions(network, images.x), images.y)


def tested(network: Network, test: Labelled) -> tuple[dict[str, Any], Tensor]:
    """Figures of images that were neither trained on nor chosen by, and the classes that were found.

    accuracy; of trees `soft`, that of the mixture; of whatever chooses, max_load, dead, entropy and mass.
    """
    balances = balances_of(network)
    classes = predictions(network, test.x, balances)
    figures: dict[str, Any] = {"accuracy": share_right(classes, test.y)}
    for balance in balances:  # one at most
        figures |= balance.as_dict()
    if trees_of(network):
        with soft_forward(network):
            figures["soft"] = accuracy(network, test)
    return figures, classes
