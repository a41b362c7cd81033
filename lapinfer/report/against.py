"""What experts and trees bring and cost, said in words against the dense models beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from lapinfer.report.drawing import megabytes

ALIKE = 0.1
"""Models whose parameters differ by less than this share are compared."""
SAME = 0.05
"""Bytes that differ by less than this share are called the same."""
FEWEST = 5
"""Turns in pairs, below which chance alone may have all of them say the same."""
UNSURE = 0.1
"""How often the range of a ratio may miss the true one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a model: parameters in all and those that a token uses, bytes of its weights in memory and those that a token
    touches, decoded tokens per second in each turn, and perplexity (None: not known, or not of the same text). paired:
    the models took turns; else their speeds are of different times, and are not compared."""

    name: str
    parameters: int
    active: int
    memory: float
    touched: float
    speeds: Sequence[float]
    perplexity: float | None
    paired: bool = True


def against_dense(models: Sequence[Figures]) -> list[str]:
    """A line for each routed model and each dense one of as many parameters, or of as many as a token uses."""
    dense = [m for m in models if m.active == m.parameters]
    lines = []
    for m in models:
        if m in dense:
            continue
        for d in dense:
            if abs(d.parameters / m.parameters - 1) < ALIKE:
                lines.append(_against(m, d, "which has as many parameters"))
            elif abs(d.parameters / m.active - 1) < ALIKE:
                lines.append(_against(m, d, "which has as many parameters as a token uses"))
    return lines


def _against(m: Figures, d: Figures, alike: str) -> str:
    quality = ""
    if m.perplexity is not None and d.perplexity is not None:
        quality = f" Perplexity is {m.perplexity:.1f} against {d.perplexity:.1f} (lower is better)."
    return (
        f"A token of {m.name} touches {megabytes(m.touched)} MB, {_bytes(m.touched / d.touched, d.name)}, "
        f"{alike}. {_speed(m, d)} Its weights take {_memory(m.memory / d.memory)}.{quality}"
    )


def _bytes(ratio: float, name: str) -> str:
    if abs(ratio - 1) < SAME:
        return f"about as much ({ratio:.2f} times) as one of {name}"
    return (
        f"{ratio:.1f} times as much as one of {name}" if ratio > 1 else f"{1 / ratio:.1f} times less than one of {name}"
    )


def _memory(ratio: float) -> str:
    return f"the same memory ({ratio:.2f} times)" if abs(ratio - 1) < SAME else f"{ratio:.1f} times the memory"


def _speed(m: Figures, d: Figures) -> str:
    """The ratio of speeds, unless it may be chance."""
    if not (m.paired and d.paired):
        return "Their speeds are not compared: they were not measured in turns."
    found = ratio(m.speeds, d.speeds)
    if found.turns < FEWEST:
        return f"Their speeds are not compared: {found.turns} of at least {FEWEST} turns."
    if not found.told:
        return "Which one decodes faster cannot be told."
    return f"It decodes {found.middle:.2f} times as fast ({found.low:.2f} to {found.high:.2f})."


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
