"""Packed random weights of any spec, in memory: for tests that need no file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tiny

from lapinfer.checkpoint.packed import BankEntry, PackedEntry
from lapinfer.pack import packed_rows
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.spec import ModelSpec
from lapinfer.tensors import bank_of, is_matrix, tensors


class RandomWeights:
    """What a PackedFile offers. `values` are the float32 weights before packing, by our tensor names."""

    def __init__(self, spec: ModelSpec, fmt: str, seed: int = 0, formats: Mapping[str, str] | None = None):
        rng = np.random.default_rng(seed)
        self.values = {name: tiny.random_tensor(name, shape, rng) for name, shape in tensors(spec).items()}
        self._formats = {
            name: (formats or {}).get(name, "f32" if name.endswith(".router") else fmt)
            for name in self.values
            if is_matrix(name)
        }
        self._tensors: dict[str, np.ndarray] = {}
        self._banks: dict[str, list[PackedEntry]] = {}
        for name, values in self.values.items():
            if not is_matrix(name):
                self._tensors[name] = values
                continue
            *several, rows, columns = values.shape
            order = packed_rows(name, rows)
            packed = [pack(self._formats[name], take_rows(m, order)) for m in values.reshape(-1, rows, columns)]
            self._tensors[name] = np.stack(packed) if several else packed[0]
            if (bank := bank_of(name)) is not None:
                entry = PackedEntry(name, self._formats[name], (*several, len(order), columns))
                self._banks.setdefault(bank, []).append(entry)
        for bank, parts in self._banks.items():
            whole = BankEntry(bank, tuple(parts))
            stored = np.zeros((whole.experts, whole.stride), np.uint8)
            for part, at in zip(parts, whole.offsets, strict=True):
                matrices = self._tensors.pop(part.name).reshape(whole.experts, -1)
                stored[:, at : at + matrices.shape[1]] = matrices
            self._tensors[bank] = stored

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def format(self, name: str) -> str | None:
        return self._formats.get(name)

    def offset(self, name: str) -> int:
        parts = self._banks[str(bank_of(name))]
        return BankEntry("", tuple(parts)).offsets[[part.name for part in parts].index(name)]
