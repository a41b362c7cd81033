"""Rows of quantized matrices as numbers: what codes and scales mean, and the groups of ours that hold them.

Weights are exact products of the stored numbers, rounded once, to float32; libraries that dequantize to 16 bits round
them once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lapinfer.quant import GROUP
from lapinfer.quant.formats import mxfp4, nf4, q4_1, q5_1, q8
from lapinfer.quant.groups import Grouped
from lapinfer.quant.search import HALF_MAX

LOST = 2.0**-10
"""A float16 keeps at least this part of a scale, or the scale is not held."""
MIDDLE = 128
"""The zero of 8-bit codes that are symmetric."""


class Part(Protocol):
    """Some rows of a matrix."""

    def weights(self) -> np.ndarray:
        """float32 [n, C]."""
        ...

    def grouped(self) -> Grouped | None:
        """The same as groups of a format of ours, as near as its scalars are; None where no format has such codes."""
        ...


@dataclass(frozen=True, slots=True)
class Codes:
    """Integer codes below 2^bits: weight = scale · (code − zero), or scale · code + minimum.

    codes: uint8 [n, C]; scale: float32 [n, G], and zero (int16) or minimum (float32) of the same shape; group: that of
    each column, int [C].
    """

    bits: int
    codes: np.ndarray
    group: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None
    minimum: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        scale = self.scale[:, self.group]
        if self.minimum is not None:
            return self.codes * scale + self.minimum[:, self.group]
        assert self.zero is not None
        return (self.codes - self.zero[:, self.group]).astype(np.float32) * scale

    def grouped(self) -> Grouped | None:
        first = self.group[::GROUP]
        if not np.array_equal(np.repeat(first, GROUP)[: len(self.group)], self.group):
            return None
        scale = halves(self.scale)
        if scale is None:
            return None
        if self.bits <= 5:
            minimum = self.minimum
            if minimum is None:
                assert self.zero is not None
                minimum = scale.astype(np.float32) * -self.zero
            minimum = halves(minimum)
            form = q4_1.FORMAT if self.bits <= 4 else q5_1.FORMAT
            return minimum if minimum is None else Grouped(form, self.codes, scale[:, first], minimum[:, first])
        if self.bits == 8 and self.zero is not None and (self.zero == MIDDLE).all():
            codes = (self.codes ^ np.uint8(MIDDLE)).view(np.int8)
            return Grouped(q8.FORMAT, np.maximum(codes, -q8.LARGEST), scale[:, first])
        return None


@dataclass(frozen=True, slots=True)
class Floats:
    """Small floats and what they are multiplied with: values float32 [n, C], scale float32 that goes with [n, C]."""

    values: np.ndarray
    scale: np.ndarray

    def weights(self) -> np.ndarray:
        return self.values * self.scale

    def grouped(self) -> Grouped | None:
        return None


@dataclass(frozen=True, slots=True)
class Blocks:
    """4-bit codes of a table: weight = table[code] · factor. codes: uint8 [n, C]; table: float32 [16]; factor: [n, C].

    normal: whether the table is that of nf4.
    """

    codes: np.ndarray
    table: np.ndarray
    factor: np.ndarray
    normal: bool = False

    def weights(self) -> np.ndarray:
        return self.table[self.codes] * self.factor

    def grouped(self) -> Grouped | None:
        first = self.factor[:, ::GROUP]
        spread = np.repeat(first, GROUP, axis=1)[:, : self.codes.shape[1]]
        if not self.normal or not np.array_equal(spread, self.factor):
            return None
        scale = halves(first / np.float32(nf4.LARGEST))
        return None if scale is None else Grouped(nf4.FORMAT, self.codes, scale)


@dataclass(frozen=True, slots=True)
class PowersOfTwo:
    """4-bit floats with an exponent for 32 columns: codes uint8 [n, C], exponents uint8 [n, C/32] (OCP's MXFP4)."""

    codes: np.ndarray
    exponents: np.ndarray

    def weights(self) -> np.ndarray:
        return self.grouped().weights()

    def grouped(self) -> Grouped:
        return Grouped(mxfp4.FORMAT, self.codes, self.exponents)


def halves(values: np.ndarray) -> np.ndarray | None:
    """float16 that are the nearest to float32; None where one of them is too large, too small or no number."""
    if not (np.abs(values) <= HALF_MAX).all():  # NaN: not
        return None
    rounded = values.astype(np.float16)
    lost = np.abs(rounded.astype(np.float32) - values) > LOST * np.abs(values)
    return None if lost.any() else rounded


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [n, K] of rows of integers, the first code in the lowest bits of the first integer."""
    stored = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stored
    if 8 % bits == 0:
        mask = np.uint8((1 << bits) - 1)
        parts = [stored >> np.uint8(shift) & mask for shift in range(0, 8, bits)]
        return np.stack(parts, axis=-1).reshape(len(stored), -1)
    each = np.unpackbits(stored, axis=1, bitorder="little").reshape(len(stored), -1, bits)
    return np.packbits(each, axis=2, bitorder="little")[..., 0]


def signed(words: np.ndarray) -> np.ndarray:
    """The same bits as int8."""
    return words.view(np.int8)


def groups_of(columns: int, size: int) -> np.ndarray:
    """The group of each column, of groups of `size` columns one after the other."""
    return np.arange(columns) // size


def _e4m3() -> np.ndarray:
    """float32 [256]: sign, 4 bits of exponent biased by 7, 3 of mantissa; no infinities (OCP 8-bit Floating Point)."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[code & 127 == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _e4m3()
E2M1 = mxfp4.VALUES
