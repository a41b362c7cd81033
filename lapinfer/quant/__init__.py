"""Weight formats: how numbers are quantized, packed and unpacked. NumPy only.

Every format packs a matrix [R, C] as blocks [ceil(R/16), ceil(C/32), block_bytes] of 16 rows × 32 columns
(missing rows and columns are zero):

    f32, f16, bf16   32 columns of 16 rows each: value(row r, column c) at element 16·c + r
    q8   (544 bytes) 16 f16 scales, one a row; then 8 lines of 64 bytes: line k, byte 4·r + j is the
                     int8 code of row r, column 4·k + j.           weight = scale · code, code −127 … 127
    q4   (320 bytes) 16 f16 scales, 16 f16 minima; then 4 lines of 64 bytes: line k, byte 4·r + j holds
                     row r's column 8·k + j in its low and column 8·k + 4 + j in its high nibble.
                                                                   weight = scale · code + minimum, code 0 … 15
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

ROWS, GROUP = 16, 32
"""Rows and columns of a block; a group of columns of one row shares a scale."""

FormatName = Literal["f32", "f16", "bf16", "q8", "q4"]


@dataclass(frozen=True, slots=True)
class Format:
    """A packed weight format. `activation` is what its kernel multiplies with: q8 groups, or float32."""

    name: FormatName
    block_bytes: int
    activation: Literal["q8", "f32"]

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return self.block_bytes * 8 / (ROWS * GROUP)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 2048, "f32"),
        Format("f16", 1024, "f32"),
        Format("bf16", 1024, "f32"),
        Format("q8", 544, "q8"),
        Format("q4", 320, "q8"),
    )
}


@dataclass(frozen=True, slots=True)
class Grouped:
    """Quantized rows in groups of 32 columns: weight = scale · code (+ minimum, q4).

    codes: [R, C] int8 (q8, −127 … 127) or uint8 (q4, 0 … 15); scale, minimum: [R, ceil(C/32)] float16.
    """

    format: FormatName
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """float32 [R, C], computed as the kernels do."""
        columns = self.codes.shape[1]
        values = self.codes.astype(np.float32) * np.repeat(self.scale.astype(np.float32), GROUP, axis=1)[:, :columns]
        if self.minimum is not None:
            values += np.repeat(self.minimum.astype(np.float32), GROUP, axis=1)[:, :columns]
        return values
