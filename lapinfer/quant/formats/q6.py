"""6-bit codes with byte scales: weight = unit · scale · (code − ZERO), code 0 … 63. 400 bytes per block.

16 u8 scales; 4 lines with the lower four bits of the codes, 2 lines with the upper two; the head of a row block has a
float32 unit per row. What embedding and head of a large model in 4 bits are: a tenth of the bytes, and every logit
depends on them (1.2 % of SmolLM2's perplexity).
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import SQUARED_LEAST, SQUARED_MAX, best_scale, inverse, nearest_codes

ZERO = 32
"""The code of 0."""

RANGES = (31.0, 31.5, 32.0, 33.0, 35.0, 38.0, 42.0, 47.0, 53.0)
"""Steps from 0 to a group's largest value; it is cut off where that makes more important ones more exact."""
BYTE = 255


class Q6(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        top = np.abs(x).max(axis=0)

        def codes(scale: np.ndarray) -> np.ndarray:
            return nearest_codes(x, scale, -ZERO, ZERO - 1)

        scale = best_scale(x, w, (top / np.float32(steps) for steps in RANGES), codes)
        groups = x.shape[1] // rows
        unit = scale.reshape(rows, groups).max(axis=1, initial=0) / np.float32(BYTE)
        spread = np.repeat(unit, groups)
        stored = np.clip(np.rint(scale * inverse(spread)), scale > 0, BYTE)
        return SearchResult((codes(stored * spread) + ZERO).astype(np.uint8), stored.astype(np.uint8), unit=unit)

    def weights(self, groups: Grouped) -> np.ndarray:
        assert groups.unit is not None
        return (groups.codes.astype(np.float32) - ZERO) * groups.spread(groups.scale) * groups.unit[:, None]


FORMAT = Q6(
    name="q6", id=7, scalars=(np.uint8,), planes=(4, 2), units=True, signed=True, max_error=1.2 / 31,
    most=SQUARED_MAX, least=SQUARED_LEAST, wider="bf16",
    nearest_types=("Q6_K", "INT2 mixed", "INT3 mixed", "INT4 mixed", "INT5 mixed", "FP4", "NVFP4"),
    kept_by_auto=True,
    heads="large", weighed=True, narrow="q8",
)  # fmt: skip
