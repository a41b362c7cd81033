"""4-bit codes of a table that is finer near zero: weight = scale · TABLE[code]. 288 bytes per block.

16 f16 scales, then 4 lines of codes. GGUF's IQ4_NL, and nearly its IQ4_XS.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.groups import Grouped
from lapinfer.quant.search import HALF_MAX, HALF_NORMAL
from lapinfer.quant.tables import TableFormat

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""llama.cpp's kvalues_iq4nl."""
MIDDLE = 32
"""IQ4_XS's 6-bit scale of 0."""


class Q4NonLinear(TableFormat):
    __slots__ = ()

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """IQ4_NL: a float16 scale, 16 bytes: byte j has column j in its low, j + 16 in its high nibble.

        IQ4_XS: a float16 for 8 such groups, whose multiples by 6-bit numbers are their scales (two upper bits of each
        in 16 bits, then four lower ones), rounded here to float16; then their codes.
        """
        R = len(blocks)
        unit = blocks[..., :2].copy().view(np.float16)[..., 0]
        if kind == "IQ4_NL":
            scale, pairs = unit, blocks[..., 2:]
        else:
            places = 2 * np.arange(8, dtype=np.uint16)
            upper = blocks[..., 2:4].copy().view(np.uint16) >> places & 3
            lower = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(upper.shape)
            six = lower.astype(np.int16) + (upper << 4).astype(np.int16) - MIDDLE
            with np.errstate(all="ignore"):  # a damaged file may have NaN here
                wide = (unit.astype(np.float32)[..., None] * six).reshape(R, -1)
                scale = wide.astype(np.float16)
            if not np.isfinite(scale).all():
                return None
            pairs = blocks[..., 8:].reshape(R, scale.shape[1], 16)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(R, -1)
        return Grouped(self, codes, scale)


FORMAT = Q4NonLinear(
    name="q4n", id=10, scalars=(np.float16,), planes=(4,), signed=True, table=TABLE,
    max_error=0.16,
    most=100 * HALF_MAX, least=127 * HALF_NORMAL, wider="bf16",
    stored_types=("IQ4_NL",), nearest_types=("IQ4_XS",), kept_by_auto=True, finer_head=True, weighed=True, narrow="q4",
)  # fmt: skip
