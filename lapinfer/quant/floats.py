"""Formats of float numbers: 32 columns of 16 rows each, value(row r, column c) at element 16·c + r.

Row by row: 32 numbers per group.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.format import Format, RowLayout
from lapinfer.quant.range import check_large


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatFormat(Format):
    """dtype: that of the stored numbers, or of their bits."""

    dtype: type[np.generic]

    @abstractmethod
    def narrowed(self, values: np.ndarray) -> np.ndarray:
        """float32 as they are stored; what is too large becomes infinite."""

    @abstractmethod
    def widened(self, stored: np.ndarray) -> np.ndarray:
        """float32 of stored numbers."""

    def store(self, values: np.ndarray) -> np.ndarray:
        """Finite float32 [R, C] as they are stored. RangeError names the first row with one that is too large."""
        check_large(self, values)
        return self.narrowed(values)

    @property
    def block_bytes(self) -> int:
        return ROWS * GROUP * np.dtype(self.dtype).itemsize

    @property
    def head_bytes(self) -> int:
        return 0

    @property
    def row(self) -> RowLayout:
        return RowLayout(0, GROUP * np.dtype(self.dtype).itemsize)

    @property
    def activation(self) -> Literal["f32"]:
        return "f32"
