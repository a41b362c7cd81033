"""Packed random weights of any spec, in memory: for tests that need no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tiny

from lapinfer.packing.entries import PackedEntry, pack_matrix
from lapinfer.packing.memory import MemoryWeights
from lapinfer.quant.choice import narrow_format
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors


class RandomWeights(MemoryWeights):
    """`values` are the float32 weights before packing, by our tensor names; `change` may write to them."""

    def __init__(
        self, spec: ModelSpec, fmt: str, seed: int = 0, formats: Mapping[str, str] | None = None,
        change: Callable[[dict[str, np.ndarray]], None] = lambda values: None,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        weights = tensors(spec)
        self.values = {name: tiny.random_tensor(name, tensor.shape, rng) for name, tensor in weights.items()}
        change(self.values)
        matrices = {name: tensor for name, tensor in weights.items() if tensor.is_matrix}
        chosen = {n: (formats or {}).get(n, "f32" if t.role == "router" else fmt) for n, t in matrices.items()}
        chosen |= {n: narrow_format(f) for n, f in chosen.items() if weights[n].packing == "rows"}
        super().__init__(weights.values(), chosen, self._packed)

    def _packed(self, entry: PackedEntry) -> np.ndarray:
        values = self.values[entry.name]
        if entry.format is None:
            return values
        *several, rows, columns = values.shape
        packed = [pack_matrix(entry.tensor, entry.format, m) for m in values.reshape(-1, rows, columns)]
        return np.stack(packed) if several else packed[0]
