"""Choosing the next token from logits without sorting them.

The filters come in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. Each of top-k,
top-p and min-p keeps the beginning of the tokens sorted by logit (equal ones by id), so only that beginning
is ever found and sorted. Which blocks of 16 logits can hold it follows from their maxima.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.options import SamplingParams
from lapinfer.text.largest import BLOCK, block_maxima, largest, members
from lapinfer.text.likelihood import Chosen, judged


class Sampler:
    """Draws tokens with the given parameters; its random numbers go on from token to token.

    logprobs: how many of the most likely tokens are told beside each one's own log-probability, which takes all logits;
    None: neither.
    """

    def __init__(self, params: SamplingParams, logprobs: int | None = None) -> None:
        self.params, self.logprobs = params, logprobs
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def draw_like(self, other: Sampler) -> None:
        """Let the next random numbers be those that `other` will draw."""
        self._random.bit_generator.state = other._random.bit_generator.state

    def needed(self, history: Sequence[int] = (), banned: Sequence[int] = ()) -> int | None:
        """How many of the largest logits, of ids that are allowed, decide what `sample` returns; None: all of them.

        A ban takes one away. So may a penalty, which lowers the logits of ids that were there; a reward (below 1) could
        raise any.
        """
        p = self.params
        kept = 1 if p.temperature == 0 else p.top_k
        if self.logprobs is not None or kept == 0 or (p.repetition_penalty < 1 and len(history)):
            return None
        lowered = len(set(history)) if p.repetition_penalty > 1 else 0
        return kept + lowered + len(set(banned))

    @np.errstate(over="ignore")  # of logits at both ends of float32: a difference of −inf is right
    def sample(
        self,
        logits: np.ndarray,
        block_max: np.ndarray | None = None,
        history: Sequence[int] = (),
        banned: Sequence[int] = (),
        allowed: np.ndarray | None = None,
        masked: bool = False,
    ) -> Chosen:
        """The next token, with what is asked for of log-probabilities under the model's own logits.

        logits: [V] float32, not changed; all but the largest `needed` ones of those allowed may be −∞. block_max:
        [ceil(V/16)] float32, the maximum of each 16 consecutive logits (computed when None); history: earlier ids,
        which are penalized; banned: ids that are not chosen; allowed: [V] bool, the ids that may be, or None for all;
        masked: logits of all others are −∞ already. Where a ban leaves none that is allowed, it does not count.
        """
        if block_max is None:
            block_max = block_maxima(logits)
        top = block_max.max()  # a NaN anywhere shows in it
        if not np.isfinite(top):
            raise CheckpointError("the model's output is not numbers (NaN or infinity): its weights are damaged")
        values, maxima, p = logits, block_max, self.params
        if p.repetition_penalty != 1 and len(history):
            ids = np.unique(np.asarray(history))
            changed = np.where(values[ids] > 0, values[ids] / p.repetition_penalty, values[ids] * p.repetition_penalty)
            values, block_max = _with(values, block_max, ids, changed)
        if allowed is not None:
            values = np.where(allowed, values, np.float32(-np.inf))
            block_max = block_maxima(values)
            if not np.isfinite(block_max.max()):
                raise CheckpointError("the model gives no probability to any token that the grammar allows")
        if banned:
            before = values, block_max
            ids = np.unique(np.asarray(banned))
            ids = ids[(ids >= 0) & (ids < len(values))]  # a tokenizer may know more than the model
            values, block_max = _with(values, block_max, ids, -np.inf)
            if not np.isfinite(block_max.max()) and (masked or allowed is not None):
                values, block_max = before
            if not np.isfinite(block_max.max()):
                raise CheckpointError("generation_config.json bans every token that could come next")
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
        return Chosen(token) if self.logprobs is None else judged(token, logits, maxima, self.logprobs)


def _with(
    values: np.ndarray, block_max: np.ndarray, ids: np.ndarray, changed: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Copies of logits and their block maxima in which some ids have other values."""
    values, block_max = values.copy(), block_max.copy()
    values[ids] = changed
    for block in np.unique(ids // BLOCK):
        block_max[block] = values[block * BLOCK : (block + 1) * BLOCK].max()
    return values, block_max


def _kept(values: np.ndarray, block_max: np.ndarray, top: np.floating, p: SamplingParams) -> np.ndarray:
    """Ids that pass top-k, top-p and min-p, ascending; never none."""
    V = len(values)
    least = float(np.float32(float(top) + math.log(p.min_p))) if p.min_p > 0 else -math.inf
    if 0 < p.top_k < V:
        ids = largest(values, block_max, p.top_k)
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


def _at_least(values: np.ndarray, block_max: np.ndarray, least: float) -> np.ndarray:
    ids = members(np.flatnonzero(block_max >= least), len(values))
    return ids[values[ids] >= least]


def _most_of(values: np.ndarray, block_max: np.ndarray, top: float, mass: float, least: float) -> np.ndarray:
    """Ids of the largest values that together have `mass` (of exp(value − top)) or reach down to `least`."""
    k = 128
    while k < len(values):
        ids = largest(values, block_max, k)
        found = values[ids].astype(np.float64)
        if found[-1] < least or float(np.exp(found - top).sum()) >= mass:
            return ids
        k *= 8
    return np.argsort(-values, kind="stable")
