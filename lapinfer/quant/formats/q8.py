"""8-bit codes: weight = scale · code, code −127 … 127. 544 bytes per block.

16 f16 scales, then 8 lines of int8 codes.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.formats import q5
from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import HALF_MAX, HALF_NORMAL, best_scale, half, nearest_codes

LARGEST = 127
SHRINKS = (1.0, 0.997, 0.994, 0.991)
"""Scales are these parts of the largest weight / 127."""


class Q8(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        top = np.abs(x).max(axis=0) / np.float32(LARGEST)

        def codes(scale: np.ndarray) -> np.ndarray:
            return nearest_codes(x, scale, -LARGEST, LARGEST)

        scale = best_scale(x, w, (half(top * np.float32(shrink)) for shrink in SHRINKS), codes)
        return SearchResult(codes(scale).astype(np.int8), scale)

    def weights(self, groups: Grouped) -> np.ndarray:
        return groups.codes * groups.spread(groups.scale)

    def holding(self, groups: Grouped) -> Grouped | None:
        """q5's codes under its scales."""
        if groups.format is not q5.FORMAT:
            return None
        return Grouped(self, groups.codes.view(np.int8) - np.int8(q5.ZERO), groups.scale)

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """Q8_0: a float16 scale and 32 codes; the code −128, which no kernel takes, does not occur in sound files."""
        codes = blocks[..., 2:].copy().view(np.int8).reshape(len(blocks), -1)
        scale = blocks[..., :2].copy().view(np.float16)[..., 0]
        return None if (codes < -LARGEST).any() else Grouped(self, codes, scale)


FORMAT = Q8(
    name="q8", id=3, scalars=(np.float16,), planes=(8,), code_type=np.int8, signed=True, by_row=True,
    most=LARGEST * HALF_MAX, least=LARGEST * HALF_NORMAL, wider="bf16",
    max_error=0.0095,  # the search may cut 0.9 % off the range, and a float16 scale another 2^-11
    stored_types=("Q8_0",), nearest_types=("INT8", "UINT8", "UINT6", "FP8"), kept_by_auto=True,
    models="small", heads="small",
)  # fmt: skip
