"""A coarse copy of a packed head: which format it has, and its numbers, from those that the head multiplies with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapinfer.packing.entries import BankEntry, PackedEntry
from lapinfer.packing.writer import PackedWriter
from lapinfer.quant import BAND, ROWS
from lapinfer.quant.blocks import pack, unpack
from lapinfer.quant.choice import coarse_format
from lapinfer.quant.quantize import quantize
from lapinfer.spec import ModelSpec
from lapinfer.tensors import COARSE, head_name

NORMS = f"{COARSE}.norms"
SLICE = 1 << 23
"""Weights that are copied at a time."""
ROUNDING = 2.0**-16
"""By how much the norm of a residual is enlarged, in parts of the row's: sums of float32 are not exact."""


def with_coarse_head(spec: ModelSpec, formats: Mapping[str, str]) -> dict[str, str]:
    """The formats of all matrices, and of a copy of the head where that is worth it."""
    chosen = coarse_format(formats[head_name(spec)], spec.vocab, spec.hidden)
    return dict(formats) if chosen is None else {**formats, COARSE: chosen}


def coarse_copy(format: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, C] as packed rows of a coarse format, and norms [R] of what these lack."""
    copy = quantize(format, rows)
    lacking = np.linalg.norm(rows - copy.weights(), axis=1) + ROUNDING * np.linalg.norm(rows, axis=1)
    return pack(format, copy), lacking.astype(np.float32)


def write_coarse_head(
    writer: PackedWriter, head: PackedEntry | BankEntry, copy: Sequence[PackedEntry | BankEntry]
) -> Iterator[int]:
    """Write the copy of a head that the file has already; yields how many numbers are done. copy: nothing, or both."""
    remaining = {entry.name for entry in copy} & {*writer.remaining()}
    if not remaining:
        return
    matrix = copy[0]
    assert isinstance(head, PackedEntry)
    assert isinstance(matrix, PackedEntry)
    rows, columns = head.tensor.shape
    step = max(SLICE // columns // (BAND * ROWS), 1) * BAND
    for first in range(0, head.row_blocks, step):
        stored = writer.read(head.name, first, min(first + step, head.row_blocks))
        count = min(len(stored) * ROWS, rows - first * ROWS)
        packed, norms = coarse_copy(str(matrix.format), unpack(str(head.format), stored, (count, columns)))
        for name, data in ((COARSE, packed), (NORMS, norms)):
            if name in remaining:
                writer.write(name, data)
        yield count * columns
