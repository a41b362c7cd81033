"""What a packed file holds: matrices in a format, float32 tensors, and banks of experts; and how a bank is laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lapinfer.machine import LARGEST_PAGE
from lapinfer.quant import ROWS
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import pack_rows, row_bytes
from lapinfer.tensors import Tensor

VERSION = "2"
ALIGN = LARGEST_PAGE
"""Tensors and large experts start at multiples of this."""
DIGESTS = ".digests"
"""The last tensor of a file, U8 [1 + n, 32]: SHA-256 of the header and of each tensor before it, in file order."""
LARGE_EXPERT = 16 * ALIGN
LINE = 64


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """A tensor to pack: a matrix [R, C], or several [n, R, C], in a format; all else (None) as float32."""

    tensor: Tensor
    format: str | None

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers, padding rows included."""
        return self.tensor.packed_shape

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 rows of a matrix."""
        return self.shape[-2] // ROWS

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """dtype and shape in the file."""
        if self.format is None:
            return "F32", self.shape
        *copies, rows, columns = self.shape
        if self.tensor.packing == "rows":
            return "U8", (*copies, rows, row_bytes(self.format, columns))
        return "U8", (*copies, self.row_blocks, FORMATS[self.format].row_block_bytes(columns))


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
        """Bytes from one expert to the next: whole pages for large ones, cache lines for small ones."""
        size = self._ends[-1]
        align = ALIGN if size >= LARGE_EXPERT else LINE
        return -(-size // align) * align

    @property
    def _ends(self) -> tuple[int, ...]:
        ends = [0]
        for part in self.parts:
            rows, size = part.stored[1][1:]
            ends.append(ends[-1] + rows * size)
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
    by_name: dict[str, PackedEntry | list[PackedEntry]] = {}
    for entry in entries:
        if (bank := entry.tensor.bank) is None:
            by_name[entry.name] = entry
        else:
            parts = by_name.setdefault(bank, [])
            assert isinstance(parts, list)
            parts.append(entry)
    return [BankEntry(name, tuple(e)) if isinstance(e, list) else e for name, e in by_name.items()]


def packed_entries(tensors: Iterable[Tensor], formats: Mapping[str, str]) -> list[PackedEntry | BankEntry]:
    """What a file holds of these tensors, in the order in which a step reads it; `formats` of the matrices."""
    return with_banks(PackedEntry(tensor, formats.get(tensor.name)) for tensor in tensors)


def parts_of(entry: PackedEntry | BankEntry) -> tuple[PackedEntry, ...]:
    """The tensors that an entry holds."""
    return entry.parts if isinstance(entry, BankEntry) else (entry,)


def pack_matrix(tensor: Tensor, format: str, values: np.ndarray) -> np.ndarray:
    """A matrix [R, C] of float32 as it is stored, all at once."""
    return (pack_rows if tensor.packing == "rows" else pack)(format, take_rows(values, tensor.row_order))
