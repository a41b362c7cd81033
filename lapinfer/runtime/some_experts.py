"""Some experts of a model in memory of this process, where the packed file is not: what a node gets piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.ops import Weights
from lapinfer.runtime.pool import reserved
from lapinfer.spec import ModelSpec

PIECE = 16_000_000
"""Bytes that are sent at a time, or one expert, where that is larger."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How experts lie in their banks. Can be pickled.

    formats: of their matrices. row_blocks, offsets: as packed files have them. banks: experts and bytes of each.
    vectors: names of their biases.
    """

    formats: Mapping[str, str]
    row_blocks: Mapping[str, int]
    offsets: Mapping[str, int]
    banks: Mapping[str, tuple[int, int]]
    vectors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Experts of a bank, uint8 [n, bytes of each], or a vector of all (experts is empty)."""

    name: str
    experts: np.ndarray
    values: np.ndarray


def layout_of(spec: ModelSpec, weights: Weights) -> Layout:
    """Of the experts of all routed layers."""
    matrices: list[str] = []
    banks: dict[str, tuple[int, int]] = {}
    vectors: list[str] = []
    for i, layer in enumerate(spec.layers):
        ff, bank = layer.feed_forward, f"layers.{i}.experts"
        if ff.router is not None:
            parts = [f"{bank}.{first_matrix(ff)[0]}", f"{bank}.down"]
            matrices += parts
            banks[bank] = weights.tensor(bank).shape
            vectors += [f"{part}.bias" for part in parts if ff.bias]
    return Layout(
        formats={name: weights.formats[name] for name in matrices},
        row_blocks={name: weights.row_blocks(name) for name in matrices},
        offsets={name: weights.offset(name) for name in matrices},
        banks=banks, vectors=tuple(vectors),
    )  # fmt: skip


def pieces_of(weights: Weights, layout: Layout, experts: Sequence[np.ndarray]) -> Iterator[Piece]:
    """All that a node with these experts, by routed layer, needs. A file is read, not mapped, and takes no memory."""
    for name in layout.vectors:
        yield Piece(name, np.zeros(0, np.int64), np.array(weights.tensor(name)))
    for (bank, (_, size)), own in zip(layout.banks.items(), experts, strict=True):
        step = max(PIECE // size, 1)
        for first in range(0, len(own), step):
            some = own[first : first + step]
            yield Piece(bank, some, np.stack([_expert(weights, bank, int(e), size) for e in some]))


def _expert(weights: Weights, bank: str, expert: int, size: int) -> np.ndarray:
    if weights.path.is_file():
        return np.fromfile(weights.path, np.uint8, size, offset=weights.file_offset(bank) + expert * size)
    return weights.tensor(bank)[expert]


class SomeExperts:
    """Weights of a node (ops.Weights) that arrive piece by piece. Experts that it does not have take no memory."""

    path = Path("memory")

    def __init__(self, layout: Layout):
        self._layout, self.formats = layout, layout.formats
        self._arrays = {bank: reserved(math.prod(shape)).reshape(shape) for bank, shape in layout.banks.items()}

    def take(self, piece: Piece) -> None:
        if piece.name in self._layout.banks:
            self._arrays[piece.name][piece.experts] = piece.values
        else:
            self._arrays[piece.name] = np.array(piece.values)

    def tensor(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def format(self, name: str) -> str | None:
        return self.formats.get(name)

    def row_blocks(self, name: str) -> int:
        return self._layout.row_blocks[name]

    def offset(self, name: str) -> int:
        return self._layout.offsets[name]

    def file_offset(self, bank: str) -> int:
        """There is no file."""
        return 0
