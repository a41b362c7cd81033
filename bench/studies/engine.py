"""Trained feed-forwards in the engine (lapinfer.layers): kept in a trial's folder, read again, run, and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.repeated import Repeated
from bench.studies.results import interleaved
from lapinfer.errors import CheckpointError
from lapinfer.layers import FFF, Dense, Layer
from lapinfer.spec import Activation
from lapinfer.train.state import save_tensors

FILE = "trained.safetensors"
CLASSES = "classes"
"""Beside the weights: what PyTorch found for the test images."""
REPEATED = 512
"""Images that pass a layer in one measurement; of batches, at least LEAST."""
LEAST = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """A network's state dict, and the class that PyTorch found for each test image [N]."""

    weights: dict[str, torch.Tensor]
    classes: np.ndarray


def save(folder: Path, network: torch.nn.Module, classes: torch.Tensor) -> None:
    """Keep what `load` reads: a whole file, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_tensors(path, {**tensors, CLASSES: classes.to(torch.uint8)}, {})


def load(folder: Path, network: torch.nn.Module | None = None) -> Trained:
    """What a finished trial kept, put into `network`; CheckpointError when that is gone or of another network."""
    path = folder / FILE
    try:
        weights = load_file(path)
        classes = weights.pop(CLASSES)
        if network is not None:
            network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: expected the weights of a finished trial, got {type(error).__name__}; name a new folder for the "
            "results, or delete trials.jsonl there to train again"
        ) from error
    return Trained(weights, classes.numpy())


def layer_of(weights: Mapping[str, torch.Tensor], batch: int, activation: Activation = "relu") -> Layer:
    """A state dict of `classify.Dense` or of a tree as the engine's layer: float32, one thread, `batch` rows."""
    options: dict[str, Any] = {"activation": activation, "quant": "f32", "threads": 1, "batch": batch}
    if "up.weight" not in weights:
        return FFF.from_state_dict(weights, **options)
    up, down, up_bias, down_bias = (
        weights[name].numpy() for name in ("up.weight", "down.weight", "up.bias", "down.bias")
    )
    return Dense(up, down, up_bias=up_bias, down_bias=down_bias, **options)


def classes_of(weights: Mapping[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    """The likeliest class of each image [N], by the engine."""
    layer = layer_of(weights, 256)
    classes = layer(x).argmax(axis=1)
    layer.close()
    return classes


def microseconds(
    networks: Mapping[str, Mapping[str, torch.Tensor]], x: np.ndarray, batch: int, rounds: int
) -> dict[str, float]:
    """Time that each network takes for a batch of images drawn from x: the median of rounds, in which all take turns.

    A layer is many times over in one plan; its weights stay in the processor's caches.
    """
    layers = {name: layer_of(weights, max(batch, 8)) for name, weights in networks.items()}
    plans = {name: Repeated.of_layer(layer, x, batch, max(REPEATED // batch, LEAST)) for name, layer in layers.items()}
    seconds = interleaved({name: plan.seconds for name, plan in plans.items()}, rounds, warm_up=1)
    for opened in (*plans.values(), *layers.values()):
        opened.close()
    return {name: 1e6 * median(times) for name, times in seconds.items()}
