"""Packed weights in memory of this process: what a PackedFile offers, without a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.mapping import let_go
from lapinfer.packing.entries import LINE, BankEntry, PackedEntry, packed_entries
from lapinfer.packing.reader import PackedFile
from lapinfer.tensors import Tensor


def aligned_copy(values: np.ndarray) -> np.ndarray:
    """A copy that begins at a cache line: a vector that straddles two costs twice, and up to half of memory's speed."""
    memory = np.empty(values.nbytes + LINE, np.uint8)
    skip = -memory.ctypes.data % LINE
    copy = memory[skip : skip + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


class MemoryWeights:
    """Tensors of a model or of a layer; `formats` are those of the matrices.

    packed gives each as it is stored: a matrix as bytes, of a bank [E, …] all of a part's, anything else as float32.
    """

    path = Path("memory")

    def __init__(
        self, tensors: Iterable[Tensor], formats: Mapping[str, str], packed: Callable[[PackedEntry], np.ndarray]
    ):
        self.formats = dict(formats)
        self._arrays: dict[str, np.ndarray] = {}
        self._row_blocks: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        for entry in packed_entries(tensors, formats):
            if isinstance(entry, BankEntry):
                self._offsets |= {part.name: entry.offset(part.name) for part in entry.parts}
                self._row_blocks |= {part.name: part.row_blocks for part in entry.parts}
                stored = entry.experts_of([packed(part) for part in entry.parts])
            else:
                stored = packed(entry)
            self._arrays[entry.name] = aligned_copy(stored)

    def tensor(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def format(self, name: str) -> str | None:
        return self.formats.get(name)

    def row_blocks(self, name: str) -> int:
        """Blocks of 16 rows that each matrix of a bank has."""
        return self._row_blocks[name]

    def offset(self, name: str) -> int:
        """Where a matrix of a bank begins in each of its experts."""
        return self._offsets[name]

    def file_offset(self, bank: str) -> int:
        """There is no file."""
        return 0

    @property
    def nbytes(self) -> int:
        """Of everything, padding included."""
        return sum(values.nbytes for values in self._arrays.values())


class CopiedWeights:
    """A packed file, of which everything but the banks is copied into memory of this process when it is asked for.

    For experts that are read from disk while the model runs: mapped weights would lose their pages to these reads, and
    be read again for every token.
    """

    def __init__(self, weights: PackedFile):
        self._weights = weights
        self._copies: dict[str, np.ndarray] = {}

    @property
    def path(self) -> Path:
        return self._weights.path

    @property
    def content(self) -> str | None:
        """As the file's."""
        return self._weights.content

    def tensor(self, name: str) -> np.ndarray:
        if name in self._weights.banks:
            return self._weights.tensor(name)
        if name not in self._copies:
            mapped = self._weights.tensor(name)
            self._copies[name] = aligned_copy(mapped)
            let_go(mapped)
            self._copies[name].flags.writeable = False
        return self._copies[name]

    def format(self, name: str) -> str | None:
        return self._weights.format(name)

    @property
    def formats(self) -> Mapping[str, str]:
        return self._weights.formats

    def row_blocks(self, name: str) -> int:
        return self._weights.row_blocks(name)

    def offset(self, name: str) -> int:
        return self._weights.offset(name)

    def file_offset(self, bank: str) -> int:
        return self._weights.file_offset(bank)
