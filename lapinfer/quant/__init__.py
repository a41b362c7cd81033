"""Weight formats: how numbers are quantized, packed and unpacked. NumPy only.

A matrix [R, C] is cut into row blocks of 16 rows, and these into blocks of 16 rows × 32 columns (missing rows and
columns are zero). BAND row blocks make a band: it has their heads (q4 alone has any), then, for every group of 32
columns, one block of each of them. The last band may have fewer. Blocks:

    f32, f16, bf16   32 columns of 16 rows each: value(row r, column c) at element 16·c + r
    q8   (544 bytes) 16 f16 scales, one a row; then 8 lines of 64 bytes: line k, byte 4·r + j is the
                     int8 code of row r, column 4·k + j.           weight = scale · code, code −127 … 127
    q4_1 (320 bytes) 16 f16 scales, 16 f16 minima; then 4 lines of 64 bytes: line k, byte 4·r + j holds
                     row r's column 8·k + j in its low and column 8·k + 4 + j in its high nibble.
                                                                   weight = scale · code + minimum, code 0 … 15
    q4   (288 bytes) 16 u8 scales, 16 u8 minima, then 4 lines as in q4_1; the head of a row block (64 bytes) has a
                     float32 unit a row.      weight = unit · (scale · code − MINIMUM_STEP · minimum), code 0 … 15
    mxfp4 (272 bytes) 16 u8 exponents, then 4 lines as in q4_1: OCP's Microscaling FP4, as gpt-oss has its experts.
                                                                   weight = MXFP4_VALUES[code] · 2^(exponent − 127)
    q6   (400 bytes) 16 u8 scales; 4 lines as in q4_1 with the lower four bits of the codes; 2 lines with the upper two:
                     line k, byte 4·r + j holds those of row r's columns 16·k + j, 16·k + 4 + j, + 8 + j and + 12 + j,
                     the first in its lowest bits. The head is q4's.
                                                                   weight = unit · scale · (code − 32), code 0 … 63
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

ROWS, GROUP = 16, 32
"""Rows and columns of a block; a group of columns of one row shares a scale."""

BAND = 8
"""Row blocks that lie side by side: one token's product then reads memory in one stream, and the token's own numbers
once for all of them."""

MINIMUM_STEP = 8
"""Units that a step of a q4 minimum is worth: a minimum is about −7.5 scales."""

MXFP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes 0 … 15 of mxfp4 mean: sign, two bits of exponent, one of mantissa."""

MXFP4_LEAST = 2
"""Smaller exponents, of numbers below 2^-124, count as zero: kernels make the scale from its bits alone."""

Q6_ZERO = 32
"""The code of 0."""

FormatName = str
"""A key of FORMATS."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Bytes of a row that is stored by itself (lapinfer.quant.rows): its head, then groups of 32 columns."""

    head_bytes: int
    group_bytes: int

    def row_bytes(self, columns: int) -> int:
        return self.head_bytes + -(-columns // GROUP) * self.group_bytes


@dataclass(frozen=True, slots=True)
class Format:
    """A packed weight format.

    id: the number that kernels' operands carry; it never changes. block_bytes: of 16 rows × 32 columns. activation:
    what its kernel multiplies with, q8 groups or float32. head_bytes: of a row block, ahead of its blocks.
    row: the layout row by row; None: there is none.
    """

    name: FormatName
    id: int
    block_bytes: int
    activation: Literal["q8", "f32"]
    head_bytes: int = 0
    row: RowLayout | None = None

    @property
    def grouped(self) -> bool:
        """Whether it has integer codes, and a scale for each group of columns."""
        return self.activation == "q8"

    @property
    def bits(self) -> float:
        """Bits a weight, scales included; heads, which grow with the rows alone, are not."""
        return self.block_bytes * 8 / (ROWS * GROUP)

    def row_block_bytes(self, columns: int) -> int:
        """Bytes of 16 rows."""
        return self.head_bytes + -(-columns // GROUP) * self.block_bytes


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 0, 2048, "f32", row=RowLayout(0, 128)),
        Format("f16", 1, 1024, "f32", row=RowLayout(0, 64)),
        Format("bf16", 2, 1024, "f32", row=RowLayout(0, 64)),
        Format("q8", 3, 544, "q8", row=RowLayout(0, 34)),
        Format("q4_1", 4, 320, "q8"),
        Format("q4", 5, 288, "q8", head_bytes=64, row=RowLayout(4, 18)),
        Format("mxfp4", 6, 272, "q8"),
        Format("q6", 7, 400, "q8", head_bytes=64),
    )
}


@dataclass(frozen=True, slots=True)
class Grouped:
    """Quantized rows in groups of 32 columns, as the format says.

    codes: [R, C] int8 (q8, −127 … 127) or uint8 (others: 0 … 15, q6 63); scale, minimum: [R, ceil(C/32)] float16, or
    uint8 (q4, q6; mxfp4's exponent); unit: [R] float32 (q4, q6).
    """

    format: FormatName
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    unit: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """float32 [R, C]: what the kernels multiply with."""
        columns = self.codes.shape[1]

        def spread(per_group: np.ndarray) -> np.ndarray:
            return np.repeat(per_group.astype(np.float32), GROUP, axis=1)[:, :columns]

        if self.format == "mxfp4":
            scale = np.ldexp(np.float32(1), self.scale.astype(np.int32) - 127)
            return MXFP4_VALUES[self.codes] * spread(np.where(self.scale < MXFP4_LEAST, 0, scale))
        if self.format == "q6" and self.unit is not None:
            return (self.codes.astype(np.float32) - Q6_ZERO) * spread(self.scale) * self.unit[:, None]
        values = self.codes * spread(self.scale)
        if self.unit is not None and self.minimum is not None:
            return (values - MINIMUM_STEP * spread(self.minimum)) * self.unit[:, None]
        return values if self.minimum is None else values + spread(self.minimum)
