"""5-bit codes between a minimum and a maximum: weight = scale · code + minimum, code 0 … 31. 384 bytes per block.

16 f16 scales, 16 f16 minima; 4 lines with the lower four bits of the codes, 1 line with the upper one. GGUF's Q5_1, and
nearly its Q5_K.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.k_quants import scales_and_minima
from lapinfer.quant.search import HALF_MAX, HALF_NORMAL, best_rounding, half

HIGHEST = 31
CUTS = ((0.0, 0.0), (0.02, 0.0), (0.0, 0.02), (0.02, 0.02), (0.04, 0.04))
"""Parts of a group's range that are cut off below and above."""


class Q5WithMinimum(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        low = x.min(axis=0)
        span = x.max(axis=0) - low
        pairs = [
            (
                half(span * np.float32((1 - below - above) / HIGHEST)),
                (span * np.float32(below) + low).astype(np.float16),
            )
            for below, above in CUTS
        ]
        values = [(s, m, s.astype(np.float32), m.astype(np.float32)) for s, m in pairs]
        return SearchResult(*best_rounding(x, w, values, HIGHEST))

    def weights(self, groups: Grouped) -> np.ndarray:
        assert groups.minimum is not None
        return groups.codes * groups.spread(groups.scale) + groups.spread(groups.minimum)

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """Q5_1: float16 scale and minimum, 4 bytes whose bit j is column j's upper one, 16 of columns j and j + 16.

        Q5_K: the scales and minima of Q4_K, rounded here to float16; 32 bytes whose bit g is a column's upper one in
        group g; 128 bytes of two groups each.
        """
        R = len(blocks)
        if kind == "Q5_1":
            scalars = blocks[..., :4].copy().view(np.float16)
            upper, pairs = np.unpackbits(blocks[..., 4:8], axis=-1, bitorder="little"), blocks[..., 8:]
            codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1) | upper << 4
            return Grouped(self, codes.reshape(R, -1), scalars[..., 0], scalars[..., 1])
        scale, minimum = scales_and_minima(blocks)
        if not (np.maximum(np.abs(scale), np.abs(minimum)) <= HALF_MAX).all():
            return None
        upper = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little").swapaxes(-1, -2)
        pairs = blocks[..., 48:].reshape(R, -1, 4, 1, 32)
        lower = np.concatenate([pairs & 15, pairs >> 4], axis=3).reshape(upper.shape)
        codes = (lower | upper << 4).reshape(R, -1)
        return Grouped(self, codes, scale.astype(np.float16), minimum.astype(np.float16))


FORMAT = Q5WithMinimum(
    name="q5_1", id=9, scalars=(np.float16, np.float16), planes=(4, 1), signed=True, max_error=2 / 31,
    most=HALF_MAX, least=HIGHEST * HALF_NORMAL, wider="bf16",
    stored_types=("Q5_1",), nearest_types=("Q5_K", "INT5"), kept_by_auto=True, finer_head=True, weighed=True,
    narrow="q8",
)  # fmt: skip
