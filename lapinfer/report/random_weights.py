"""Packed weights of any shape without a checkpoint, for measuring speed where quality does not matter.

A matrix is a few random rows, packed once for each format and width, and repeated; every copy has memory of its own, as
if it were all different.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lapinfer.packing.entries import PackedEntry
from lapinfer.packing.memory import MemoryWeights
from lapinfer.quant import BAND, ROWS
from lapinfer.quant.blocks import pack
from lapinfer.quant.rows import pack_rows
from lapinfer.tensors import is_row_by_row

ROWS_PACKED = 64
"""Of a matrix that is packed row by row."""


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, str], seed: int = 0,
    given: Mapping[str, np.ndarray] | None = None, fill: Callable[[str], float] = lambda name: 1.0,
) -> MemoryWeights:  # fmt: skip
    """Weights of `tensors(spec)`, or of a layer. given: float32 of what must not be random; fill: of vectors."""
    rng, given = np.random.default_rng(seed), given or {}
    few: dict[tuple[bool, str, int], np.ndarray] = {}

    def some_rows(by_row: bool, format: str, columns: int) -> np.ndarray:
        key = (by_row, format, columns)
        if key not in few:
            count = ROWS_PACKED if by_row else BAND * ROWS
            values = rng.standard_normal((count, columns), np.float32) / np.float32(columns**0.5)
            few[key] = (pack_rows if by_row else pack)(format, values)
        return few[key]

    def packed(entry: PackedEntry) -> np.ndarray:
        if entry.format is None:
            values = given.get(entry.name)
            return np.full(entry.shape, fill(entry.name), np.float32) if values is None else values
        if entry.name in given:
            assert is_row_by_row(entry.name)
            return pack_rows(entry.format, given[entry.name])
        stored = entry.stored[1]
        rows, whole = some_rows(is_row_by_row(entry.name), entry.format, entry.shape[-1]), stored[-2]
        return np.broadcast_to(np.tile(rows, (-(-whole // len(rows)), 1))[:whole], stored)

    return MemoryWeights(shapes, formats, packed)
