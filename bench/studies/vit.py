"""A small vision transformer (arXiv 2010.11929) whose feed-forwards are dense or fast feedforward trees: the model, its
training on some thousand images, and what is found of it, in PyTorch and in the engine.

Letters: N images, S patches and one more position, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bench.studies import engine
from bench.studies.classify import Dense, Labelled, plain_tree, share_right, train_epoch
from bench.studies.classify import predictions as predictions_of
from bench.studies.data import Images
from lapinfer import layers
from lapinfer.errors import InputError, TrainingError
from lapinfer.layers import Layer
from lapinfer.spec import Activation
from lapinfer.train.config import Trees
from lapinfer.train.fff import FFF, mixture, soft_forward, trees_of
from lapinfer.train.routed import balances_of

LAYERS, WIDTH, HEADS, PATCH, NEURONS, CLASSES = 4, 128, 4, 4, 128, 10
ACTIVATION: Activation = "gelu"
Forward = Literal["soft", "hardened", "straight_through"]
RATE, BATCH = 4e-4, 64
RECIPES: dict[str, tuple[Forward, float, float]] = {
    "dense": ("soft", 0.0, 0.0), "5": ("soft", 5.0, 0.0), "10": ("soft", 10.0, 0.0), "frozen": ("hardened", 0.0, 0.0),
    "straight": ("straight_through", 0.0, 0.1),
}  # fmt: skip
"""The trees' forward pass, h, and the weight of the leaves' balance. frozen is the paper's h = ∞: nodes stay as they
began, and the chosen leaf alone is trained."""
PATIENCE = 3
"""Epochs without a better validation accuracy, after which the learning rate is halved."""
AT_ONCE = 250
"""Images of a forward pass without gradients."""
TOKENS = 2048
"""That the engine's layers compute at once."""

predictions = partial(predictions_of, at_once=AT_ONCE)


# ---- the model ----


def tree(leaf: int, forward: Forward = "soft", balance: float = 0.0) -> FFF:
    """Leaves of `leaf` neurons, NEURONS together; weights begin with a deviation of 1/√inputs."""
    layer = plain_tree(WIDTH, NEURONS, leaf, Trees(forward=forward, balance=balance), WIDTH, ACTIVATION)
    layer.initialise(WIDTH**-0.5, leaf**-0.5)
    return layer


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, feed_forward: Dense | FFF) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        N, S, D = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(N, S, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, S, D))
        return x + self.feed_forward(self.norm(x).flatten(0, 1)).view(N, S, D)


class ViT(nn.Module):
    """Images [N, channels, size, size] to logits [N, 10], read at a position of its own."""

    def __init__(self, channels: int, size: int, leaf: int, forward: Forward = "soft", balance: float = 0.0) -> None:
        """leaf: neurons of a leaf; 0: dense feed-forwards."""
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(
            Block(tree(leaf, forward, balance) if leaf else Dense(WIDTH, NEURONS, WIDTH, ACTIVATION))
            for _ in range(LAYERS)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """[N, channels, size, size] -> [N, 10]."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))

    @property
    def feed_forwards(self) -> list[Dense | FFF]:
        return [block.feed_forward for block in self.blocks]  # type: ignore[misc]


# ---- training ----


@dataclass(frozen=True, slots=True)
class Split:
    """Images float32 [N, channels, size, size] from −1 to 1: to train on, to choose the epoch, to test."""

    train: Labelled
    valid: Labelled
    test: Labelled


def split(images: Images, train: int, valid: int, test: int) -> Split:
    """The first `train` images of a fixed shuffle of the training set, the next `valid`; the first `test` to test."""
    if len(images.train) < train + valid:
        raise InputError(f"{images.name}: {len(images.train)} images to train on; the study needs {train + valid}")
    order = np.random.default_rng(0).permutation(len(images.train))

    def scaled(x: np.ndarray, labels: np.ndarray) -> Labelled:
        return Labelled(torch.from_numpy(x.astype(np.float32) / 127.5 - 1), torch.from_numpy(labels))

    parts = (order[:train], order[train : train + valid])
    return Split(
        *(scaled(images.train[rows], images.train_labels[rows]) for rows in parts),
        test=scaled(images.test[:test], images.test_labels[:test]),
    )


@dataclass(slots=True)
class Fitted:
    """The model of the best epoch (from 1), and each epoch's accuracy on the validation images."""

    model: ViT
    epoch: int = 0
    valid: list[float] = field(default_factory=list)


def fit(images: Split, leaf: int, recipe: str, epochs: int, seed: int) -> Fitted:
    """Adam; the mean entropies (times h) and balances of the layers are added up. The epoch with the best hard
    validation accuracy is kept, the first of several."""
    torch.manual_seed(seed)
    forward, h, balance = RECIPES[recipe]
    model = ViT(images.train.x.shape[1], images.train.x.shape[2], leaf, forward, balance)
    for layer in trees_of(model):
        layer.hardening = h
        if forward == "hardened" and layer.nodes is not None:
            layer.nodes.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], RATE)
    halving = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, PATIENCE - 1)
    fitted, best = Fitted(model), copy.deepcopy(model.state_dict())
    for epoch in range(1, epochs + 1):
        loss, _ = train_epoch(model.train(), images.train, optimizer, BATCH)
        if not math.isfinite(loss):
            raise TrainingError(f"leaf {leaf}, {recipe}, seed {seed}: the loss of epoch {epoch} is {loss}")
        valid = share_right(predictions(model, images.valid.x), images.valid.y)
        if valid > max(fitted.valid, default=-1.0):
            fitted.epoch, best = epoch, copy.deepcopy(model.state_dict())
        fitted.valid.append(valid)
        halving.step(valid)
    model.load_state_dict(best)
    return fitted


def judge(model: ViT, test: Labelled, in_engine: int) -> tuple[dict[str, Any], Tensor]:
    """Figures of the test images, and their classes; of the first `in_engine`, also with the engine's feed-forwards."""
    balances = balances_of(model)
    classes = predictions(model, test.x, balances)
    figures: dict[str, Any] = {"accuracy": share_right(classes, test.y), "test_images": len(test)}
    if balances:
        with soft_forward(model):
            figures["soft_accuracy"] = share_right(predictions(model, test.x), test.y)
        figures["layers"] = [balance.as_dict() for balance in balances]
    with engine_forwards(model) as checks:
        engines = predictions(model, test.x[:in_engine])
    labels, own = test.y[:in_engine], classes[:in_engine]
    figures["engine"] = {
        "images": len(engines), "accuracy": share_right(engines, labels),
        "accuracy_of_torch": share_right(own, labels), "other_predictions": int((engines != own).sum()),
        "difference": max(check.difference for check in checks), "flips": sum(check.flips for check in checks),
        "tokens": sum(check.tokens for check in checks),
    }  # fmt: skip
    return figures, classes


# ---- in the engine ----


def engine_layer(module: Dense | FFF) -> Layer:
    """The engine's layer with a trained module's weights, for TOKENS at once."""
    return engine.layer_of(module.state_dict(), TOKENS, ACTIVATION)


@dataclass(slots=True)
class Check:
    """The engine's layer beside PyTorch's, on the same inputs.

    difference: the largest of two numbers of an output, over tokens with the same leaf. flips: tokens with another
    leaf, whose logit is a rounding error from zero.
    """

    layer: Layer
    tokens: int = 0
    difference: float = 0.0
    flips: int = 0

    def replace(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """A forward hook: what the engine makes of the inputs, instead of what PyTorch does."""
        x = inputs[0].numpy()
        y = self.layer(x)
        same = np.ones(len(x), bool)
        if isinstance(module, FFF):
            assert isinstance(self.layer, layers.FFF)
            same = leaves(module, inputs[0]) == self.layer.leaves(x)[:, 0]
        if same.any():
            self.difference = max(self.difference, float(np.abs(y - output.numpy())[same].max()))
        self.tokens += len(x)
        self.flips += int((~same).sum())
        return torch.from_numpy(y)


@contextmanager
def hooked(model: ViT, hooks: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Within, each feed-forward has its forward hook."""
    handles = [module.register_forward_hook(hook) for module, hook in zip(model.feed_forwards, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def engine_forwards(model: ViT) -> Iterator[list[Check]]:
    """Within, each feed-forward gives what the engine makes of its inputs; and is compared with what it would give."""
    checks = [Check(engine_layer(module)) for module in model.feed_forwards]
    try:
        with hooked(model, [check.replace for check in checks]):
            yield checks
    finally:
        for check in checks:
            check.layer.close()


def leaves(module: FFF, x: Tensor) -> np.ndarray:
    """The leaf that each token is sent to, by PyTorch."""
    return mixture((module.logits(x) >= 0).float(), module.tree.depth).argmax(dim=2)[:, 0].numpy()


@torch.no_grad()
def activations(model: ViT, x: Tensor, tokens: int) -> list[np.ndarray]:
    """What comes into each feed-forward, float32 [tokens, D], from as many images as that takes."""
    model.eval()
    inputs: list[list[np.ndarray]] = [[] for _ in model.feed_forwards]

    def recorder(parts: list[np.ndarray]) -> Callable[..., None]:
        return lambda module, arguments, output: parts.append(arguments[0].numpy().copy())

    with hooked(model, [recorder(parts) for parts in inputs]):
        for part in x.split(AT_ONCE):
            model(part)
            if sum(map(len, inputs[0])) >= tokens:
                break
    return [np.concatenate(parts)[:tokens] for parts in inputs]
