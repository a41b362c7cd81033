"""Trained classifiers in the engine (lapinfer.layers): the classes that it finds, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save_file

from lapinfer.errors import CheckpointError
from lapinfer.layers import FFF, Dense, Layer
from lapinfer.layers.repeated import Repeated
from lapinfer.train.state import replace_file

FILE = "trained.safetensors"
CLASSES = "classes"
"""Beside the weights: what PyTorch found for the test images."""
REPEATED = 512
"""Images that pass a layer in one measurement; of batches, at least LEAST."""
LEAST = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights by the names of a network's state dict, and the class that PyTorch found for each test image [N]."""

    weights: dict[str, np.ndarray]
    classes: np.ndarray


def save(folder: Path, network: torch.nn.Module, classes: torch.Tensor) -> None:
    """Keep what `load` finds: a whole file, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    partial = path.with_name(FILE + ".partial")
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file({**tensors, CLASSES: classes.to(torch.uint8)}, partial)
    replace_file(path, partial)


def load(folder: Path) -> Trained:
    """What a finished trial kept; CheckpointError when that is gone."""
    path = folder / FILE
    try:
        weights = load_file(path)
        classes = weights.pop(CLASSES)
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected the weights of a finished trial, got {type(error).__name__}; name a new folder for the "
            "results, or delete trials.jsonl there to train again"
        ) from error
    return Trained(weights, classes)


def layer_of(weights: Mapping[str, np.ndarray], batch: int) -> Layer:
    """A dense network or a tree of ReLUs as the engine's layer: float32, one thread, `batch` images at once."""
    options: dict[str, Any] = {"activation": "relu", "quant": "f32", "threads": 1, "batch": batch}
    if "up.weight" not in weights:
        return FFF.from_state_dict(weights, **options)
    return Dense(weights["up.weight"], weights["down.weight"], up_bias=weights["up.bias"],
                 down_bias=weights["down.bias"], **options)  # fmt: skip


def classes_of(weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The likeliest class of each image [N], by the engine."""
    layer = layer_of(weights, 256)
    found = layer(x).argmax(axis=1)
    layer.close()
    return found


def microseconds(
    layers: Mapping[str, Mapping[str, np.ndarray]], x: np.ndarray, batch: int, rounds: int
) -> dict[str, float]:
    """Time that each network takes for a batch of images drawn from x: the median of rounds, in which all take turns.

    The layer is many times over in one plan; its weights stay in the processor's caches.
    """
    made = {name: layer_of(weights, max(batch, 8)) for name, weights in layers.items()}
    plans = {name: Repeated.of_layer(layer, x, batch, max(REPEATED // batch, LEAST)) for name, layer in made.items()}
    spent: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(rounds + 1):
        for name, plan in plans.items():
            seconds = plan.seconds()
            if turn:  # the first warms up
                spent[name].append(1e6 * seconds)
    for plan in plans.values():
        plan.close()
    for layer in made.values():
        layer.close()
    return {name: median(times) for name, times in spent.items()}
