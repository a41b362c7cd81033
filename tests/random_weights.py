"""Packed random weights of any spec, in memory: for tests that need no file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tiny

from lapinfer.checkpoint.entries import BankEntry
from lapinfer.pack import pack_matrix, packed_entries
from lapinfer.quant.rows import NEAREST
from lapinfer.spec import ModelSpec
from lapinfer.tensors import bank_of, is_matrix, is_router, is_row_by_row, tensors


class RandomWeights:
    """What a PackedFile offers. `values` are the float32 weights before packing, by our tensor names."""

    def __init__(self, spec: ModelSpec, fmt: str, seed: int = 0, formats: Mapping[str, str] | None = None):
        rng = np.random.default_rng(seed)
        self.values = {name: tiny.random_tensor(name, shape, rng) for name, shape in tensors(spec).items()}
        self._formats = {
            name: (formats or {}).get(name, "f32" if is_router(name) else fmt)
            for name in self.values
            if is_matrix(name)
        }
        self._formats |= {name: NEAREST.get(f, f) for name, f in self._formats.items() if is_row_by_row(name)}
        self._tensors: dict[str, np.ndarray] = {}
        self._banks: dict[str, BankEntry] = {}
        for entry in packed_entries(tensors(spec), self._formats):
            if isinstance(entry, BankEntry):
                self._banks[entry.name] = entry
                self._tensors[entry.name] = entry.experts_of([self._packed(part.name) for part in entry.parts])
            else:
                self._tensors[entry.name] = self._packed(entry.name)

    def _packed(self, name: str) -> np.ndarray:
        """A tensor as a file stores it, or a matrix of a bank [E, row blocks, bytes]."""
        values = self.values[name]
        if name not in self._formats:
            return values
        *several, rows, columns = values.shape
        packed = [pack_matrix(name, self._formats[name], m) for m in values.reshape(-1, rows, columns)]
        return np.stack(packed) if several else packed[0]

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def format(self, name: str) -> str | None:
        return self._formats.get(name)

    def offset(self, name: str) -> int:
        return self._banks[str(bank_of(name))].offset(name)
