"""What experts and trees bring and cost, said against the dense models beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

ALIKE = 0.1
"""Models whose parameters differ by less than this share are compared."""
FEWEST = 5
"""Turns in pairs, below which chance alone may have all of them say the same."""
UNSURE = 0.1
"""How often the range of a ratio may miss the true one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a model: parameters in all and those that a token uses, bytes in memory and those that a token reads, decoded
    tokens per second in each turn, and perplexity (None: not known, or not of the same text). paired: the models took
    turns; else their speeds are of different times, and are not compared."""

    name: str
    parameters: int
    active: int
    memory: float
    touched: float
    speeds: Sequence[float]
    perplexity: float | None
    paired: bool = True


def against_dense(models: Sequence[Figures]) -> list[str]:
    """A sentence for each routed model and each dense one of as many parameters, or of as many as a token uses."""
    dense = [m for m in models if m.active == m.parameters]
    sentences = []
    for m in models:
        if m in dense:
            continue
        for d in dense:
            if abs(d.parameters / m.parameters - 1) < ALIKE:
                sentences.append(_against(m, d, "as many parameters"))
            elif abs(d.parameters / m.active - 1) < ALIKE:
                sentences.append(_against(m, d, "as many as a token uses"))
    return sentences


def _against(m: Figures, d: Figures, alike: str) -> str:
    quality = ""
    if m.perplexity is not None and d.perplexity is not None:
        quality = f", perplexity {m.perplexity:.1f} instead of {d.perplexity:.1f}"
    return (
        f"{m.name} instead of {d.name} ({alike}): {m.memory / d.memory:.2f}x the memory, "
        f"{m.touched / d.touched:.2f}x the bytes per token, {_speed(m, d)}{quality}"
    )


def _speed(m: Figures, d: Figures) -> str:
    """The ratio of speeds, unless it may be chance."""
    if not (m.paired and d.paired):
        return "speeds not compared (not measured in turns)"
    found = ratio(m.speeds, d.speeds)
    if found.turns < FEWEST:
        return f"speeds not compared ({found.turns} of at least {FEWEST} turns)"
    return f"{found} the decoding speed" if found.told else "a decoding speed that cannot be told apart"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of paired ratios, and the range in which their true median lies (`UNSURE`)."""

    middle: float
    low: float
    high: float
    turns: int

    @property
    def told(self) -> bool:
        """Whether it is known on which side of 1 it is."""
        return self.turns >= FEWEST and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        return f"{self.middle:.2f}x ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of two models' figures, turn by turn."""
    paired = sorted(a / b for a, b in zip(ours, theirs, strict=False))
    n, left = len(paired), 0
    # The sign test's range: so many of the lowest and of the highest are left out.
    while 2 * sum(comb(n, k) for k in range(left + 2)) / 2**n <= UNSURE:
        left += 1
    return Ratio(median(paired), paired[left], paired[n - 1 - left], n)
