"""What experts and trees bring and cost, said against the dense models beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIKE = 0.1
"""Models whose parameters differ by less than this share are compared."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a model: parameters in all and those that a token uses, bytes in memory and those that a token reads, decoded
    tokens per second, and perplexity (None: not known, or not of the same text)."""

    name: str
    parameters: int
    active: int
    memory: float
    touched: float
    speed: float
    perplexity: float | None
    spread: float = 0.0


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
    """The ratio of speeds, unless their own spread could explain it."""
    ratio, noise = m.speed / d.speed, m.spread + d.spread
    if noise and ratio * (1 - noise) <= 1 <= ratio * (1 + noise):
        return "a decoding speed that cannot be told apart"
    return f"{ratio:.2f}x the decoding speed"
