"""float16: 1,024 bytes per block."""

from __future__ import annotations

import numpy as np

from lapinfer.quant.floats import FloatFormat


class Float16(FloatFormat):
    __slots__ = ()

    def narrowed(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16)

    def widened(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32)


FORMAT = Float16(
    name="f16",
    id=1,
    max_error=2**-11,
    most=65504,
    least=2**-14,
    dtype=np.float16,
    stored_types=("F16",),
    for_routers=True,
)
