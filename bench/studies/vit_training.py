"""Training of a vision transformer on some thousand images, and what is found of it: in PyTorch, and in the engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.studies.images import Images
from bench.studies.vit import ACTIVATION, Dense, Forward, ViT
from lapinfer import layers
from lapinfer.errors import InputError, TrainingError
from lapinfer.train.fff import FFF, mixture, soft_forward
from lapinfer.train.record import Balance

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


@dataclass(frozen=True, slots=True)
class Split:
    """Images float32 [N, channels, size, size] from −1 to 1, and labels: to train on, to choose the epoch, to test."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(images: Images, train: int, valid: int, test: int) -> Split:
    """The first `train` images of a fixed shuffle of the training set, the next `valid`; the first `test` to test."""
    if len(images.train) < train + valid:
        raise InputError(f"{images.name}: {len(images.train)} images to train on; the study needs {train + valid}")
    order = np.random.default_rng(0).permutation(len(images.train))

    def taken(x: np.ndarray, labels: np.ndarray, which: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(x[which].astype(np.float32) / 127.5 - 1), torch.from_numpy(labels[which])

    return Split(
        taken(images.train, images.train_labels, order[:train]),
        taken(images.train, images.train_labels, order[train : train + valid]),
        taken(images.test, images.test_labels, np.arange(min(test, len(images.test)))),
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
    x, labels = images.train
    forward, h, balance = RECIPES[recipe]
    model = ViT(x.shape[1], x.shape[2], leaf, forward, balance)
    for tree in model.trees:
        tree.hardening = h
        if forward == "hardened" and tree.nodes is not None:
            tree.nodes.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], RATE)
    halving = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, PATIENCE - 1)
    fitted, best = Fitted(model), copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = cross_entropy(model(x[rows]), labels[rows])
            for tree in model.trees:
                assert tree.record is not None
                loss = loss + tree.record.penalty
            if not loss.isfinite():
                raise TrainingError(
                    f"leaf {leaf}, {recipe}, seed {seed}: the loss of epoch {epoch + 1} is {loss.item()}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        valid = accuracy(predictions(model, images.valid[0]), images.valid[1])
        if valid > max(fitted.valid, default=-1.0):
            fitted.epoch, best = epoch + 1, copy.deepcopy(model.state_dict())
        fitted.valid.append(valid)
        halving.step(valid)
    model.load_state_dict(best)
    return fitted


@torch.no_grad()
def predictions(model: ViT, x: Tensor, balances: list[Balance] | None = None) -> Tensor:
    """The likeliest class of each image, trees hard (unless `soft_forward`); their records are added to balances."""
    model.eval()
    found = []
    for part in x.split(AT_ONCE):
        found.append(model(part).argmax(dim=1))
        for tree, balance in zip(model.trees, balances or [], strict=False):
            assert tree.record is not None
            balance.add(tree.record)
    return torch.cat(found)


def accuracy(found: Tensor, labels: Tensor) -> float:
    return (found == labels).float().mean().item()


def judge(model: ViT, images: Split, in_engine: int) -> dict[str, Any]:
    """Figures of the test images; of the first `in_engine`, with each feed-forward computed by the engine, too."""
    x, labels = images.test
    balances = [Balance() for _ in model.trees]
    found = predictions(model, x, balances)
    figures: dict[str, Any] = {"accuracy": accuracy(found, labels), "test_images": len(x)}
    if balances:
        with soft_forward(model):
            figures["soft_accuracy"] = accuracy(predictions(model, x), labels)
        figures["layers"] = [balance.as_dict() for balance in balances]
    with engine_forwards(model) as checks:
        same = predictions(model, x[:in_engine])
    figures["engine"] = {
        "images": len(same), "accuracy": accuracy(same, labels[:in_engine]),
        "accuracy_of_torch": accuracy(found[:in_engine], labels[:in_engine]),
        "other_predictions": int((same != found[:in_engine]).sum()),
        "difference": max(check.difference for check in checks), "flips": sum(check.flips for check in checks),
        "tokens": sum(check.tokens for check in checks),
    }  # fmt: skip
    return figures


@dataclass(slots=True)
class Check:
    """The engine's layer beside PyTorch's, on the same inputs.

    difference: the largest of two numbers of an output, over tokens with the same leaf. flips: tokens with another
    leaf, whose logit is a rounding error from zero.
    """

    tokens: int = 0
    difference: float = 0.0
    flips: int = 0


def engine_layer(module: Dense | FFF, tokens: int = TOKENS) -> layers.Layer:
    """The engine's layer with a trained module's weights, float32, one thread."""
    options: dict[str, Any] = {"activation": ACTIVATION, "threads": 1, "batch": tokens}
    if isinstance(module, FFF):
        return layers.FFF.from_state_dict(module.state_dict(), **options)
    up, down, up_bias, down_bias = (
        p.detach().numpy() for p in (module.up.weight, module.down.weight, module.up.bias, module.down.bias)
    )
    return layers.Dense(up, down, up_bias=up_bias, down_bias=down_bias, **options)


@contextmanager
def engine_forwards(model: ViT) -> Iterator[list[Check]]:
    """Within, each feed-forward gives what the engine makes of its inputs; and is compared with what it would give."""
    made, checks, handles = [], [], []
    for module in model.feed_forwards:
        layer, check = engine_layer(module), Check()
        made.append(layer)
        checks.append(check)

        def replaced(module: Any, inputs: Any, output: Tensor, layer: Any = layer, check: Check = check) -> Tensor:
            x = inputs[0].numpy()
            y = layer(x)
            same = np.ones(len(x), bool)
            if isinstance(module, FFF):
                same = leaves(module, inputs[0]) == layer.leaves(x)[:, 0]
            if same.any():
                check.difference = max(check.difference, float(np.abs(y - output.numpy())[same].max()))
            check.tokens += len(x)
            check.flips += int((~same).sum())
            return torch.from_numpy(y)

        handles.append(module.register_forward_hook(replaced))
    try:
        yield checks
    finally:
        for handle in handles:
            handle.remove()
        for layer in made:
            layer.close()


def leaves(module: FFF, x: Tensor) -> np.ndarray:
    """The leaf that each token is sent to, by PyTorch."""
    return mixture((module.logits(x) >= 0).float(), module.tree.depth).argmax(dim=2)[:, 0].numpy()


@torch.no_grad()
def activations(model: ViT, x: Tensor, tokens: int) -> list[np.ndarray]:
    """What comes into each feed-forward, float32 [tokens, D], from as many images as that takes."""
    model.eval()
    seen: list[list[np.ndarray]] = [[] for _ in model.feed_forwards]

    def noted(parts: list[np.ndarray]) -> Any:
        return lambda module, inputs, output: parts.append(inputs[0].numpy().copy())

    handles = [m.register_forward_hook(noted(parts)) for m, parts in zip(model.feed_forwards, seen, strict=True)]
    try:
        for part in x.split(AT_ONCE):
            model(part)
            if sum(map(len, seen[0])) >= tokens:
                break
    finally:
        for handle in handles:
            handle.remove()
    return [np.concatenate(parts)[:tokens] for parts in seen]
