"""How long a step takes on one machine: what was measured of steps of several sizes, cut into experts and all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of a piece of work: of its begin, of a byte of weights, and of a multiply-add. They add up, since kernels
    wait for memory and multiply in turns."""

    begin: float
    byte: float
    mac: float

    def seconds(self, nbytes: float, macs: float) -> float:
        return self.begin + self.byte * nbytes + self.mac * macs

    def waiting(self, nbytes: float, macs: float) -> float:
        """The share of the time that is spent on bytes."""
        total = self.seconds(nbytes, macs)
        return self.byte * nbytes / total if total else 0.0


def fit(works: Sequence[tuple[float, float]], seconds: Sequence[float]) -> Rates:
    """The rates, none below 0, whose squared relative errors are least. works: bytes and multiply-adds of each."""
    given = np.array(seconds, np.float64)
    terms = np.column_stack([np.ones(len(works)), np.array(works, np.float64).reshape(-1, 2)]) / given[:, None]
    scale = np.abs(terms).max(axis=0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(3), np.inf
    for count in (1, 2, 3):  # which of them are above 0: all ways are few
        for own in map(list, combinations(range(3), count)):
            found = np.linalg.lstsq(terms[:, own] / scale[own], np.ones(len(given)), rcond=None)[0]
            error = float(((terms[:, own] / scale[own] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(3), error
                best[own] = found / scale[own]
    return Rates(*best.tolist())


@dataclass(frozen=True, slots=True)
class Step:
    """waiting: the share of its seconds that is spent on bytes."""

    tokens: int
    seconds: float
    waiting: float


@dataclass(frozen=True, slots=True)
class Asking:
    """Seconds of software in one layer: of its begin, and of a pair of a token and an expert."""

    begin: float = 0.0
    pair: float = 0.0

    def seconds(self, pairs: int) -> float:
        return self.begin + self.pair * pairs


NOTHING = Asking()


@dataclass(frozen=True, slots=True)
class Times:
    """Of a model on one machine.

    steps: of several sizes without experts and head, by tokens; between them, and beyond, lines are drawn. head: of
    the head, by the tokens whose logits are wanted. position: seconds of an earlier position that a token sees, in all
    layers. experts: of those of one layer; expert_bytes, expert_macs: of one expert, and of one token with it. home,
    node: of software, where experts are apart.
    """

    steps: tuple[Step, ...]
    head: tuple[Step, ...]
    position: float
    experts: Rates
    expert_bytes: int = 0
    expert_macs: int = 0
    home: Asking = NOTHING
    node: Asking = NOTHING

    def rest(self, tokens: int, positions: int = 0) -> float:
        """Seconds of all but experts and head in a step of so many tokens, which see so many earlier positions
        together."""
        return _between(self.steps, tokens) + self.position * positions

    def rest_waiting(self, tokens: int) -> float:
        """The share of it that is spent on bytes."""
        return _waiting(self.steps, tokens)

    def of_head(self, wanted: int) -> float:
        return _between(self.head, wanted)

    def head_waiting(self, wanted: int) -> float:
        return _waiting(self.head, wanted)

    def of_experts(self, distinct: int, pairs: int) -> float:
        """Seconds of one layer's experts: so many of them, for so many pairs of a token and an expert."""
        return self.experts.seconds(distinct * self.expert_bytes, pairs * self.expert_macs) if pairs else 0.0

    def experts_waiting(self, distinct: int, pairs: int) -> float:
        return self.experts.waiting(distinct * self.expert_bytes, pairs * self.expert_macs)


def _waiting(steps: Sequence[Step], tokens: int) -> float:
    return float(np.interp(tokens, [step.tokens for step in steps], [step.waiting for step in steps]))


def _between(steps: Sequence[Step], tokens: int) -> float:
    """Seconds on the line between two steps; beyond the last one, on that of the last two."""
    if len(steps) == 1 or tokens <= steps[0].tokens:
        return steps[0].seconds
    pairs = list(pairwise(steps))
    low, high = next((pair for pair in pairs if tokens <= pair[1].tokens), pairs[-1])
    return low.seconds + (tokens - low.tokens) / (high.tokens - low.tokens) * (high.seconds - low.seconds)
