"""Choosing the next token from logits without sorting them.

The filters come in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. Each of top-k,
top-p and min-p keeps the beginning of the tokens sorted by logit (equal ones by id), so only that beginning
is ever found and sorted. Which blocks of 16 logits can hold it follows from their maxima.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lapinfer.errors import CheckpointError, InputError

BLOCK = 16
"""Logits a maximum in `block_max` stands for."""

REPETITION_WINDOW = 64
"""Tokens of the past that the repetition penalty looks at."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the defaults are llama.cpp's.

    temperature: 0 takes the most likely token, and nothing below matters but the penalty.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the fewest most likely tokens that have this share of what top-k left; 1 keeps all.
    min_p: keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    repetition_penalty: divides positive and multiplies negative logits of the last 64 tokens; 1 is none.
    seed: the same one gives the same tokens on every machine; None differs each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", "a number from 0", self.temperature)
        _require(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", "a whole number from 0", self.top_k)
        _require(0 <= self.top_p <= 1, "top_p", "a number from 0 to 1", self.top_p)
        _require(0 <= self.min_p <= 1, "min_p", "a number from 0 to 1", self.min_p)
        penalty = self.repetition_penalty
        _require(0.01 <= penalty <= 100, "repetition_penalty", "a number from 0.01 to 100", penalty)
        seed = self.seed
        _require(seed is None or (isinstance(seed, int) and seed >= 0), "seed", "a whole number from 0", seed)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """What a model's makers recommend in generation_config.json; our defaults where that says nothing.

        Values that would be refused here are ignored: they are no reason not to run the model.
        """
        params: dict[str, Any] = {}
        for name in (f.name for f in fields(cls) if f.name != "seed"):
            value = config.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                recommended: dict[str, Any] = {name: value}
                try:
                    cls(**recommended)
                except InputError:
                    continue
                params |= recommended
        return cls(**params)


def _require(valid: bool, name: str, expected: str, got: object) -> None:
    if not valid:
        raise InputError(f"{name}: expected {expected}, got {got}")


class Sampler:
    """Draws tokens with the given parameters; its random numbers go on from token to token."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def sample(
        self, logits: np.ndarray, block_max: np.ndarray | None = None, history: Sequence[int] = ()
    ) -> tuple[int, float]:
        """The next token and its log-probability under the model's own logits (no filter, temperature 1).

        logits: [V] float32, not changed; block_max: [ceil(V/16)] float32, the maximum of each 16 consecutive
        logits (computed when None); history: earlier ids, of which the last 64 are penalized.
        """
        if block_max is None:
            block_max = _block_max(logits)
        top = block_max.max()
        # One pass over all logits: the log-probability needs it, and a NaN anywhere shows in it.
        total = float(np.exp(logits - top).sum()) if np.isfinite(top) else math.nan
        if not math.isfinite(total):
            raise CheckpointError("the model's output is not numbers (NaN or infinity): its weights are damaged")
        log_total = float(top) + math.log(total)
        values, p = logits, self.params
        if p.repetition_penalty != 1 and len(history):
            values, block_max = _penalized(logits, block_max, history[-REPETITION_WINDOW:], p.repetition_penalty)
            top = block_max.max()
        if p.temperature == 0:
            block = int(block_max.argmax())
            token = block * BLOCK + int(values[block * BLOCK : (block + 1) * BLOCK].argmax())
        else:
            ids = _kept(values, block_max, top, p)
            # Drawn in the order of ids, so that tokens need no order where nothing was cut.
            with np.errstate(over="ignore"):  # of a tiny temperature: −inf is right
                weight = np.exp((values[ids].astype(np.float64) - float(top)) / p.temperature).cumsum()
            index = int(weight.searchsorted(self._random.random() * weight[-1], side="right"))
            token = int(ids[min(index, len(ids) - 1)])
        return token, float(logits[token]) - log_total


def _block_max(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, (0, -len(values) % BLOCK), constant_values=-np.inf)
    return padded.reshape(-1, BLOCK).max(axis=1)


def _penalized(
    logits: np.ndarray, block_max: np.ndarray, recent: Sequence[int], penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    values, block_max = logits.copy(), block_max.copy()
    ids = np.unique(np.asarray(recent))
    values[ids] = np.where(values[ids] > 0, values[ids] / penalty, values[ids] * penalty)
    for block in np.unique(ids // BLOCK):
        block_max[block] = values[block * BLOCK : (block + 1) * BLOCK].max()
    return values, block_max


def _kept(values: np.ndarray, block_max: np.ndarray, top: np.floating, p: SamplingParams) -> np.ndarray:
    """Ids that pass top-k, top-p and min-p, ascending; never none."""
    V = len(values)
    least = float(np.float32(float(top) + math.log(p.min_p))) if p.min_p > 0 else -math.inf
    if 0 < p.top_k < V:
        ids = _largest(values, block_max, p.top_k)
        total = None
    else:
        if p.top_p >= 1:
            return _at_least(values, block_max, least)
        total = float(np.exp(values - top).sum(dtype=np.float64))
        ids = _most_of(values, block_max, float(top), p.top_p * total, least)
    sorted_values = values[ids].astype(np.float64)
    keep = len(ids)
    if p.top_p < 1:
        mass = np.exp(sorted_values - float(top)).cumsum()
        keep = int(mass.searchsorted(p.top_p * (mass[-1] if total is None else total))) + 1
    if p.min_p > 0:
        keep = min(keep, int(np.count_nonzero(sorted_values >= least)))
    return np.sort(ids[: max(keep, 1)])


def _members(blocks: np.ndarray, V: int) -> np.ndarray:
    """Ids of the logits of some blocks, ascending."""
    ids = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    return ids[ids < V] if len(ids) and ids[-1] >= V else ids


def _at_least(values: np.ndarray, block_max: np.ndarray, least: float) -> np.ndarray:
    ids = _members(np.flatnonzero(block_max >= least), len(values))
    return ids[values[ids] >= least]


def _largest(values: np.ndarray, block_max: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest values, largest first, equal ones by id.

    The k-th largest block maximum has k values at or above it, so smaller blocks hold none of the k largest.
    """
    n = len(block_max)
    blocks = np.flatnonzero(block_max >= np.partition(block_max, n - k)[n - k]) if k < n else np.arange(n)
    ids = _members(blocks, len(values))
    candidates = values[ids]
    if k < len(ids):
        keep = candidates >= np.partition(candidates, len(ids) - k)[len(ids) - k]
        ids, candidates = ids[keep], candidates[keep]
    return ids[np.argsort(-candidates, kind="stable")][:k]


def _most_of(values: np.ndarray, block_max: np.ndarray, top: float, mass: float, least: float) -> np.ndarray:
    """Ids of the largest values that together have `mass` (of exp(value − top)) or reach down to `least`."""
    k = 128
    while k < len(values):
        ids = _largest(values, block_max, k)
        largest = values[ids].astype(np.float64)
        if largest[-1] < least or float(np.exp(largest - top).sum()) >= mass:
            return ids
        k *= 8
    return np.argsort(-values, kind="stable")
