"""5-bit codes: weight = scale · (code − ZERO), code 0 … 31. 352 bytes per block.

16 f16 scales; 4 lines with the lower four bits of the codes, 1 line with the upper one. GGUF's Q5_0. Scales may be
negative: then 16 steps, not 15, reach a group's largest weight whatever its sign.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import HALF_MAX, HALF_NORMAL, search_signed_scale

ZERO = 16
"""The code of 0."""

RANGES = (15.0, 15.5, 16.0, 16.5, 17.0, 18.0, 19.5, 21.5, 24.0, 27.0)
"""Steps from 0 to a group's largest weight; it is cut off where that makes more important ones more exact."""


class Q5(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        return SearchResult(*search_signed_scale(x, w, RANGES, ZERO))

    def weights(self, groups: Grouped) -> np.ndarray:
        return (groups.codes.astype(np.float32) - ZERO) * groups.spread(groups.scale)

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """A float16 scale, 4 bytes whose bit j is column j's upper one, 16 bytes: byte j has columns j and j + 16."""
        scale = blocks[..., :2].copy().view(np.float16)[..., 0]
        upper, pairs = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little"), blocks[..., 6:]
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1) | upper << 4
        return Grouped(self, codes.reshape(len(blocks), -1), scale)


FORMAT = Q5(
    name="q5", id=8, scalars=(np.float16,), planes=(4, 1), signed=True, max_error=1.5 / 15,
    most=(ZERO - 1) * HALF_MAX, least=ZERO * HALF_NORMAL, wider="bf16",
    stored_types=("Q5_0",), kept_by_auto=True, finer_head=True, weighed=True, narrow="q8",
)  # fmt: skip
