"""Which experts tokens choose: recorded from a model that reads a text, or drawn by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.errors import InputError
from lapinfer.spec import ModelSpec, RouterSpec, TreeSpec

if TYPE_CHECKING:
    from lapinfer.model import Model

TOKENS = 1024
"""Of a tape: enough that two places of it have little in common."""


@dataclass(frozen=True, slots=True)
class Tape:
    """chosen: int16 [tokens, routed layers, A], −1 where a layer has fewer than A; experts: of each routed layer.

    A sequence begins at a place of its own and reads on, from the end at the begin: so neighbours in a sequence, and
    the layers of a token, choose as they did together.
    """

    chosen: np.ndarray
    experts: tuple[int, ...]
    source: str

    def read(self, places: np.ndarray) -> np.ndarray:
        """int16 [T, layers, A] of tokens at these places."""
        return self.chosen[places % len(self.chosen)]

    @property
    def skew(self) -> float:
        """The busiest expert's load by the mean, the mean over the layers; 1 without routed layers."""
        busiest = []
        for layer, experts in enumerate(self.experts):
            own = self.chosen[:, layer]
            load = np.bincount(own[own >= 0], minlength=experts)
            busiest.append(load.max() / load.mean())
        return float(np.mean(busiest)) if busiest else 1.0


def routed_layers(spec: ModelSpec) -> list[int]:
    return [i for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None]


def recorded(model: Model, ids: np.ndarray) -> Tape:
    """What a model's tokens choose while it reads a text."""
    layers = routed_layers(model.spec)
    experts = tuple(_router(model.spec, layer).n_experts for layer in layers)
    size, pieces = min(model.max_step, model.ctx), []
    for start in range(0, min(len(ids), TOKENS), size):
        piece = ids[start : start + size]
        model.step(piece, np.zeros(len(piece), np.int64), np.arange(len(piece)), np.zeros(len(piece), bool))
        chosen = model.chosen_experts
        pieces.append(np.stack([chosen[layer] for layer in layers], axis=1).astype(np.int16))
    return Tape(np.concatenate(pieces), experts, "recorded")


def drawn(spec: ModelSpec, skew: float = 0.0, seed: int = 0) -> Tape:
    """Tokens that choose independently. skew: the exponent s of Zipf's law, by which the r-th expert of a layer has a
    weight of r^−s; 0: all are alike."""
    if not 0 <= skew <= 4:
        raise InputError(f"--skew: expected a number from 0 to 4, got {skew:g}")
    rng = np.random.default_rng(seed)
    layers = [_choices(_router(spec, layer), skew, rng) for layer in routed_layers(spec)]
    most = max((own.shape[1] for own in layers), default=0)
    chosen = np.full((TOKENS, len(layers), most), -1, np.int16)
    for i, own in enumerate(layers):
        chosen[:, i, : own.shape[1]] = own
    experts = tuple(_router(spec, layer).n_experts for layer in routed_layers(spec))
    return Tape(chosen, experts, f"drawn, Zipf {skew:g}" if skew else "drawn, all alike")


def _router(spec: ModelSpec, layer: int) -> RouterSpec | TreeSpec:
    router = spec.layers[layer].feed_forward.router
    assert router is not None
    return router


def _choices(router: RouterSpec | TreeSpec, skew: float, rng: np.random.Generator) -> np.ndarray:
    """[TOKENS, A] of one layer."""
    if isinstance(router, RouterSpec):
        return _largest(router.n_experts, router.top_k, skew, rng)
    leaves = 1 << router.depth
    trees = np.arange(router.trees)
    taken = np.concatenate([_largest(leaves, 1, skew, rng) for _ in trees], axis=1)
    if not router.neurons:
        return taken + trees * leaves
    levels = np.arange(router.depth + 1)
    on_the_way = (taken[..., None] + leaves >> router.depth - levels) - 1
    return (on_the_way + (trees * router.nodes)[:, None]).reshape(TOKENS, -1)


def _largest(experts: int, top_k: int, skew: float, rng: np.random.Generator) -> np.ndarray:
    """Experts without repetition, likely by their weights: the largest of log weight + Gumbel noise."""
    weights = -skew * np.log(rng.permutation(experts) + 1.0)
    noisy = weights + rng.gumbel(size=(TOKENS, experts))
    return np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k] if top_k < experts else np.argsort(-noisy, axis=1)
