"""Which experts tokens choose: recorded from a model that reads a text, or drawn by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.errors import InputError
from lapinfer.runtime.placement import spread
from lapinfer.spec import ModelSpec, RouterSpec, TreeSpec

if TYPE_CHECKING:
    from lapinfer.model import Model

TOKENS = 1024
"""Of a tape: enough that two places of it have little in common."""


@dataclass(frozen=True, slots=True)
class Tape:
    """chosen: int16 [tokens, routed layers, A], −1 where a layer has fewer than A; experts: of each routed layer.
    Shared experts come last, and all tokens have them; shared: how many.

    A sequence begins at a place of its own and reads on, from the end at the begin: so neighbours in a sequence, and
    the layers of a token, choose as they did together.
    """

    chosen: np.ndarray
    experts: tuple[int, ...]
    source: str
    shared: int = 0

    def read(self, places: np.ndarray) -> np.ndarray:
        """int16 [T, layers, A] of tokens at these places."""
        return self.chosen[places % len(self.chosen)]

    def place(self, layer: int, nodes: int) -> np.ndarray:
        """The node of each expert of a layer, as the engine spreads them (runtime/placement.py)."""
        experts = self.experts[layer]
        work = np.full(experts, (self.chosen.shape[2] - self.shared) / max(experts - self.shared, 1))
        work[experts - self.shared :] = 1.0
        return spread(work, nodes, layer)

    @property
    def skew(self) -> float:
        """The busiest expert's load by the mean, the mean over the layers; 1 without routed layers."""
        busiest = []
        for layer, experts in enumerate(self.experts):
            own = self.chosen[:, layer]
            load = np.bincount(own[own >= 0], minlength=experts)[: experts - self.shared]
            busiest.append(load.max() / load.mean())
        return float(np.mean(busiest)) if busiest else 1.0


def routed_layers(spec: ModelSpec) -> list[int]:
    return [i for i, layer in enumerate(spec.layers) if layer.feed_forward.router is not None]


def recorded(model: Model, ids: np.ndarray) -> Tape:
    """What a model's tokens choose while it reads a text."""
    layers, size, pieces = routed_layers(model.spec), min(model.max_step, model.ctx), []
    for start in range(0, min(len(ids), TOKENS), size):
        piece = ids[start : start + size]
        model.step(piece, np.zeros(len(piece), np.int64), np.arange(len(piece)), np.zeros(len(piece), bool))
        chosen = model.chosen_experts
        pieces.append(np.stack([chosen[layer] for layer in layers], axis=1).astype(np.int16))
    return _with_shared(np.concatenate(pieces), model.spec, "recorded")


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
    return _with_shared(chosen, spec, f"drawn, Zipf {skew:g}" if skew else "drawn, all alike")


def _with_shared(chosen: np.ndarray, spec: ModelSpec, source: str) -> Tape:
    """With the shared experts behind the others."""
    feed_forwards = [spec.layers[layer].feed_forward for layer in routed_layers(spec)]
    shared = max((ff.shared for ff in feed_forwards), default=0)
    numbers = np.full((len(feed_forwards), shared), -1, np.int16)
    for row, ff in zip(numbers, feed_forwards, strict=True):
        row[: ff.shared] = np.arange(ff.experts - ff.shared, ff.experts)
    whole = np.concatenate([chosen, np.broadcast_to(numbers, (len(chosen), *numbers.shape))], axis=2)
    return Tape(whole, tuple(ff.experts for ff in feed_forwards), source, shared)


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
