"""Typed reading of a GGUF file's header, which anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families.config import MOST_LAYERS

VECTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that say what config.json says."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A GGUF file's header: typed reading of its `architecture.key` values; `where` names the file in errors.

    tensors: their shapes, rows first. vectors: values of those of VECTORS that it has in float32. asked: the keys that
    a reader asked for; what a file has beyond them is not known (gguf_keys.py).
    """

    where: str
    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    vectors: Mapping[str, np.ndarray]
    asked: set[str] = field(default_factory=set)

    def raw(self, key: str) -> Any:
        """The value as it stands there, a list per layer included; None when there is none."""
        self.asked.add(key)
        return self.values.get(f"{self.architecture}.{key}")

    def get(self, key: str) -> Any:
        value = self.raw(key)
        if isinstance(value, np.ndarray):  # one value per layer: only a constant one has a place in config.json
            layers = self.values.get(f"{self.architecture}.block_count")
            if type(layers) is int and key != "block_count" and len(value) != layers:
                raise self.wrong(key, f"{len(value)} values", f"one for each of {layers} layers")
            if not 0 < len(value) <= MOST_LAYERS:
                raise self.wrong(key, f"{len(value)} values", "one, or one for each layer")
            if (value != value[0]).any():
                raise self.unsupported(f"{self.architecture}.{key} differs between layers")
            value = value[0].item()
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return self._typed(key, default, int, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        # Through float32's shortest text: 1e-5 is stored as 9.999999747378752e-06.
        value = float(str(np.float32(self._typed(key, default, (int, float), "a number"))))
        if not math.isfinite(value):
            raise self.wrong(key, str(value), "a finite number")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, str(value)[:40], "a string")
        return value

    def vector(self, name: str) -> np.ndarray:
        if name not in self.vectors:
            raise CheckpointError(f"{self.where}: tensor {name!r} is missing or no vector of F32")
        return self.vectors[name]

    def wrong(self, key: str, got: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {self.architecture}.{key} is {got}, expected {expected}")

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.where}: {what}")

    def _typed(self, key: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, kind) or isinstance(value, bool) or abs(value) > 1e30:
            raise self.wrong(key, "missing" if value is None else f"{str(value)[:40]}", expected)
        return value
