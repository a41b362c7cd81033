"""float32, as it is stored: 2,048 bytes per block."""

from __future__ import annotations

import numpy as np

from lapinfer.quant.floats import FloatFormat

LARGEST = float(np.finfo(np.float32).max)


class Float32(FloatFormat):
    __slots__ = ()

    def narrowed(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)

    def widened(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32)


FORMAT = Float32(
    name="f32", id=0, max_error=0.0, most=LARGEST, dtype=np.float32, stored_types=("F32",), for_routers=True
)
