"""bfloat16, the upper half of a float32's bits, rounded to nearest even: 1,024 bytes per block."""

from __future__ import annotations

import numpy as np

from lapinfer.quant.floats import FloatFormat


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 of uint16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


LARGEST = 255 * 2.0**120
"""What is larger rounds to infinity."""


class BFloat16(FloatFormat):
    __slots__ = ()

    def narrowed(self, values: np.ndarray) -> np.ndarray:
        return to_bf16(values)

    def widened(self, stored: np.ndarray) -> np.ndarray:
        return from_bf16(stored)


FORMAT = BFloat16(
    name="bf16", id=2, max_error=2**-8, most=LARGEST, dtype=np.uint16, stored_types=("BF16",), for_routers=True
)
