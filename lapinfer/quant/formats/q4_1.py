"""4-bit codes between a minimum and a maximum: weight = scale · code + minimum, code 0 … 15. 320 bytes per block.

16 f16 scales, 16 f16 minima, then 4 lines of codes. GGUF's Q4_1, and its Q4_0 with a minimum of −8 scales.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import HALF_MAX, HALF_NORMAL, NIBBLE, best_rounding, half, search_scale_and_minimum


class Q4WithMinimum(GroupFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        """In float16: the scales and minima of the search, or the plain range where its rounding is better."""
        low = x.min(axis=0)
        plain = (x.max(axis=0) - low) / np.float32(NIBBLE), low
        pairs = [(half(s), m.astype(np.float16)) for s, m in (search_scale_and_minimum(x, w), plain)]
        return SearchResult(
            *best_rounding(x, w, [(s, m, s.astype(np.float32), m.astype(np.float32)) for s, m in pairs])
        )

    def weights(self, groups: Grouped) -> np.ndarray:
        assert groups.minimum is not None
        return groups.codes * groups.spread(groups.scale) + groups.spread(groups.minimum)

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """A float16 scale, Q4_1's float16 minimum, 16 bytes: byte j has column j in its low, j + 16 in its high nibble.

        A power of two times a float16 is one too, unless it is too large.
        """
        scale = blocks[..., :2].copy().view(np.float16)[..., 0]
        if kind == "Q4_1":
            minimum, pairs = blocks[..., 2:4].copy().view(np.float16)[..., 0], blocks[..., 4:]
        else:
            with np.errstate(all="ignore"):  # a damaged file may have NaN here
                wide = scale.astype(np.float32) * -8
            if (np.abs(wide) > HALF_MAX).any():
                return None
            minimum, pairs = wide.astype(np.float16), blocks[..., 2:]
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(len(blocks), -1)
        return Grouped(self, codes, scale, minimum)


FORMAT = Q4WithMinimum(
    name="q4_1", id=4, scalars=(np.float16, np.float16), planes=(4,), max_error=2 / 15,
    most=HALF_MAX, least=NIBBLE * HALF_NORMAL, wider="bf16",
    stored_types=("Q4_0", "Q4_1"), nearest_types=("INT2", "INT3", "INT4"), kept_by_auto=True,
    finer_head=True, weighed=True, narrow="q4",
)  # fmt: skip
