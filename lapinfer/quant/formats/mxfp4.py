"""4-bit floats under a shared power of two: weight = VALUES[code] · 2^(exponent − 127). 272 bytes per block.

16 u8 exponents, then 4 lines of codes: OCP's Microscaling FP4 (v1.0), as gpt-oss has its experts.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import SQUARED_LEAST, SQUARED_MAX, squared

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes 0 … 15 mean: sign, two bits of exponent, one of mantissa."""

LEAST = 2
"""Smaller exponents, of numbers below 2^-124, count as zero: kernels make the scale from its bits alone."""

BIAS = 127
BYTE = 255
"""As an exponent, no number."""
MIDDLES = (VALUES[:7] + VALUES[1:8]) / 2
"""Between neighbouring magnitudes."""


class MXFP4(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        """The power of two that just holds the largest, or half of it."""
        with np.errstate(divide="ignore"):
            power = np.ceil(np.log2(np.abs(x).max(axis=0) / VALUES[7]))
        holds = np.clip(power + BIAS, LEAST, 254).astype(np.int32)
        result: SearchResult | None = None
        least = np.full(x.shape[1], np.inf, np.float32)
        for exponent in (holds, np.maximum(holds - 1, LEAST)):
            unit = np.ldexp(np.float32(1), exponent - BIAS)
            codes = np.searchsorted(MIDDLES, np.abs(x) / unit).astype(np.uint8) + np.uint8(8) * (x < 0)
            error = squared(x - VALUES[codes] * unit, w)
            better = error < least
            least = np.where(better, error, least)
            if result is not None:
                codes, exponent = np.where(better, codes, result.codes), np.where(better, exponent, result.scale)
            result = SearchResult(codes, exponent)
        assert result is not None
        return SearchResult(result.codes, result.scale.astype(np.uint8))

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """An exponent, 16 bytes: byte j has column j in its low, j + 16 in its high nibble."""
        exponents, pairs = blocks[..., 0], blocks[..., 1:]
        if (exponents == BYTE).any():
            return None
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(len(blocks), -1)
        return Grouped(self, codes, np.ascontiguousarray(exponents))

    def weights(self, groups: Grouped) -> np.ndarray:
        scale = np.ldexp(np.float32(1), groups.scale.astype(np.int32) - BIAS)
        return VALUES[groups.codes] * groups.spread(np.where(groups.scale < LEAST, 0, scale))


FORMAT = MXFP4(
    name="mxfp4", id=6, scalars=(np.uint8,), planes=(4,), signed=True,
    max_error=1 / 4,  # half the largest step, from 4 to 6, or what lies beyond 6 of 8
    most=SQUARED_MAX, least=SQUARED_LEAST, wider="bf16",
    stored_types=("MXFP4",), kept_by_auto=True, narrow="q4",
)  # fmt: skip
