"""Sizes of models with random weights (shapes.py), known without importing anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KINDS: Final = ("dense", "dense-active", "moe", "fff")


@dataclass(frozen=True, slots=True)
class Size:
    """active: neurons that a token computes of `neurons`; experts: of which top_k are active; depth: of the tree."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    neurons: int
    experts: int
    top_k: int
    depth: int
    vocab: int = 49_152
    context: int = 4096

    @property
    def active(self) -> int:
        return self.neurons // self.experts * self.top_k


SIZES: Final = {
    "100m": Size(512, 12, 8, 4, 4096, 16, 2, 3, 16_384),
    "1b": Size(2048, 16, 32, 8, 8192, 32, 4, 3),
    "7b": Size(4096, 32, 32, 8, 11_264, 32, 4, 3),
}
"""A tree of depth 3 has leaves of an eighth of the neurons, as many as 4 of 32 experts have."""
