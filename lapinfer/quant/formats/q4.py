"""4-bit codes with byte scales: weight = unit · (scale · code − MINIMUM_STEP · minimum), code 0 … 15.

288 bytes per block: 16 u8 scales, 16 u8 minima, then 4 lines of codes; the head of a row block has a float32 unit per
row.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant import GROUP
from lapinfer.quant.groups import FeedbackFormat, Grid, Grouped, SearchResult
from lapinfer.quant.k_quants import scales_and_minima
from lapinfer.quant.search import NIBBLE, SQUARED_LEAST, SQUARED_MAX, best_rounding, inverse, search_scale_and_minimum

MINIMUM_STEP = 8
"""Units that a step of a minimum is worth: a minimum is about −7.5 scales."""

BYTE = 255
NEAR = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Steps of (scale, minimum) around the nearest ones that are tried when both are rounded to bytes."""


class Q4(FeedbackFormat):
    __slots__ = ()

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        scale, minimum = search_scale_and_minimum(x, w, below_zero=True)
        groups = x.shape[1] // rows
        unit = row_units(scale.reshape(rows, groups), minimum.reshape(rows, groups))
        return SearchResult(*rounded_to_units(x, w, scale, minimum, np.repeat(unit, groups)), unit)

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """Q4_K, nearly: 256 columns have two float16, whose multiples by 6-bit numbers are scales and minima of groups.

        They become bytes in the row's unit, and codes what is then nearest. Source: llama.cpp's ggml-quants.c.
        """
        if kind != "Q4_K":
            return None
        scale, minimum = scales_and_minima(blocks)
        if not ((scale >= 0) & (minimum <= 0) & np.isfinite(scale) & np.isfinite(minimum)).all():
            return None
        R, N = scale.shape
        pairs = blocks[..., 16:].reshape(R, -1, 4, 1, GROUP)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=3).reshape(R * N, GROUP).T
        x = codes * scale.reshape(-1) + minimum.reshape(-1)
        unit = row_units(scale, minimum)
        codes, scale, minimum = rounded_to_units(x, None, scale.reshape(-1), minimum.reshape(-1), np.repeat(unit, N))
        return Grouped(self, codes.T.reshape(R, -1), scale.reshape(R, N), minimum.reshape(R, N), unit)

    def weights(self, groups: Grouped) -> np.ndarray:
        assert groups.minimum is not None
        assert groups.unit is not None
        values = groups.codes * groups.spread(groups.scale)
        return (values - MINIMUM_STEP * groups.spread(groups.minimum)) * groups.unit[:, None]

    def plain_units(self, weights: np.ndarray) -> np.ndarray:
        R, C = weights.shape
        groups = np.pad(weights, ((0, 0), (0, -C % GROUP)), "edge").reshape(R, -1, GROUP)
        low = np.minimum(groups.min(axis=2), 0)
        return row_units((groups.max(axis=2) - low) / np.float32(NIBBLE), low)

    def grid(self, x: np.ndarray, w: np.ndarray, unit: np.ndarray) -> Grid:
        _, scale, minimum = rounded_to_units(x, w, *search_scale_and_minimum(x, w, below_zero=True), unit)
        return Grid(scale, minimum, scale * unit, minimum * (unit * np.float32(-MINIMUM_STEP)))


def row_units(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Units float32 [R] in which the scales and minima [R, G] of each row fit a byte."""
    return np.maximum(scale, minimum / np.float32(-MINIMUM_STEP)).max(axis=1, initial=0) / np.float32(BYTE)


def rounded_to_units(
    x: np.ndarray, w: np.ndarray | None, scale: np.ndarray, minimum: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, and scales and minima in units [N] of one byte each: of the nearest few, those with the least error."""
    per_unit = inverse(unit)
    s = np.clip(np.rint(scale * per_unit), 0, BYTE)
    m = np.clip(np.rint(minimum * per_unit / np.float32(-MINIMUM_STEP)), 0, BYTE)
    low = np.minimum(x.min(axis=0), 0)
    plain_s = np.clip(np.ceil((x.max(axis=0) - low) / np.float32(NIBBLE) * per_unit), 0, BYTE)
    plain_m = np.clip(np.rint(low * per_unit / np.float32(-MINIMUM_STEP)), 0, BYTE)
    pairs = [(np.clip(s + a, 0, BYTE), np.clip(m + b, 0, BYTE)) for a, b in NEAR] + [(plain_s, plain_m)]
    stored = [(s.astype(np.uint8), m.astype(np.uint8), s * unit, m * (unit * -MINIMUM_STEP)) for s, m in pairs]
    return best_rounding(x, w, stored)


FORMAT = Q4(
    name="q4", id=5, scalars=(np.uint8, np.uint8), planes=(4,), units=True, by_row=True, max_error=2 / 15,
    most=SQUARED_MAX, least=SQUARED_LEAST, wider="bf16",
    nearest_types=("Q4_K", "Q3_K", "Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
    kept_by_auto=True, models="large", finer_head=True, exact_variant="q4_1", weighed=True, coarse=0.08,
)  # fmt: skip
