"""What a packed file holds: matrices in a format, float32 tensors, and banks of experts; and how a bank is laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lapinfer.machine import LARGEST_PAGE
from lapinfer.quant import ROWS
from lapinfer.quant.blocks import interleaved_rows, pack, take_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import pack_rows, row_bytes
from lapinfer.tensors import bank_of, is_row_by_row

ALIGN = LARGEST_PAGE
"""Tensors and large experts start at multiples of this."""
LARGE_EXPERT = 16 * ALIGN
LINE = 64


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """A tensor to pack: `format` of matrices [R, C] or [n, R, C], or None for float32 of any shape."""

    name: str
    format: str | None
    shape: tuple[int, ...]

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """dtype and shape in the file."""
        if self.format is None:
            return "F32", self.shape
        *several, rows, columns = self.shape
        if is_row_by_row(self.name):
            return "U8", (*several, rows, row_bytes(self.format, columns))
        return "U8", (*several, -(-rows // ROWS), FORMATS[self.format].row_block_bytes(columns))


@dataclass(frozen=True, slots=True)
class BankEntry:
    """Experts to pack: `parts` are their matrices, each of shape [E, R, C]."""

    name: str
    parts: tuple[PackedEntry, ...]

    @property
    def experts(self) -> int:
        return self.parts[0].shape[0]

    @property
    def stride(self) -> int:
        """Bytes from an expert to the next: whole pages for large ones, cache lines for small ones."""
        size = self._ends[-1]
        align = ALIGN if size >= LARGE_EXPERT else LINE
        return -(-size // align) * align

    @property
    def _ends(self) -> tuple[int, ...]:
        ends = [0]
        for part in self.parts:
            blocks, size = part.stored[1][1:]
            ends.append(ends[-1] + blocks * size)
        return tuple(ends)

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """dtype and shape in the file."""
        return "U8", (self.experts, self.stride)

    def offset(self, name: str) -> int:
        """Where a part begins in each expert."""
        return self._ends[[part.name for part in self.parts].index(name)]

    def experts_of(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """n experts as they are stored, uint8 [n, stride]. parts: their packed matrices [n, row blocks, bytes]."""
        stored = np.zeros((len(parts[0]), self.stride), np.uint8)
        for matrices, (start, stop) in zip(parts, pairwise(self._ends), strict=True):
            stored[:, start:stop] = matrices.reshape(len(matrices), -1)
        return stored


def with_banks(entries: Iterable[PackedEntry]) -> list[PackedEntry | BankEntry]:
    """The tensors that a file stores: all matrices of a bank become one, which stands where its first one stood."""
    found: dict[str, PackedEntry | tuple[PackedEntry, ...]] = {}
    for entry in entries:
        if (bank := bank_of(entry.name)) is None:
            found[entry.name] = entry
        else:
            before = found.get(bank, ())
            assert isinstance(before, tuple)
            found[bank] = (*before, entry)
    return [BankEntry(name, e) if isinstance(e, tuple) else e for name, e in found.items()]


def packed_entries(shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, str]) -> list[PackedEntry | BankEntry]:
    """What the file holds of tensors of such shapes, in the order in which a step reads it; `formats` of matrices."""
    entries = []
    for name, shape in shapes.items():
        if name in formats:
            shape = (*shape[:-2], len(packed_rows(name, shape[-2])), shape[-1])
        entries.append(PackedEntry(name, formats.get(name), shape))
    return with_banks(entries)


def packed_rows(name: str, rows: int) -> np.ndarray:
    """Which logical row each packed row of a matrix holds; −1: none, zeros."""
    if name.endswith(".gate_up"):
        return interleaved_rows(rows // 2)
    if is_row_by_row(name):
        return np.arange(rows)
    multiple = 2 * ROWS if name.endswith(".up") else ROWS  # rows of `up` become groups of 32 activations
    order = np.arange(-(-rows // multiple) * multiple)
    return np.where(order < rows, order, -1)


def pack_matrix(name: str, format: str, values: np.ndarray) -> np.ndarray:
    """A whole matrix [R, C] of this name as it is stored."""
    ordered = take_rows(values, packed_rows(name, len(values)))
    return (pack_rows if is_row_by_row(name) else pack)(format, ordered)
