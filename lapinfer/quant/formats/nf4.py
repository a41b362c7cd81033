"""bitsandbytes' NormalFloat: weight = scale · TABLE[code], a table of quantiles of the normal distribution, in 127ths.

288 bytes per block: 16 f16 scales, then 4 lines of codes. Source: arXiv 2305.14314, appendix E.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant.search import HALF_MAX, HALF_NORMAL
from lapinfer.quant.tables import TableFormat

LARGEST = 127
TABLE = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
"""Of the values −1 … 1, in steps of 1 / 127: what 8-bit products take. A weight loses up to 1 / 254 of the scale."""


class NormalFloat(TableFormat):
    __slots__ = ()


FORMAT = NormalFloat(
    name="nf4", id=11, scalars=(np.float16,), planes=(4,), signed=True, table=TABLE, max_error=0.18,
    most=LARGEST * HALF_MAX, least=LARGEST * HALF_NORMAL, wider="bf16",
    nearest_types=("NF4",), kept_by_auto=True, finer_head=True, weighed=True, narrow="q4",
)  # fmt: skip
