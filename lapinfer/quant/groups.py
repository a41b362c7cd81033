"""Formats of integer codes: 32 columns of one row share a scale, and in some formats a minimum or a row's unit.

A block (16 rows × 32 columns) begins with its scalars, 16 of each, one per row: scales, then minima if there
are any. Then come the codes, cut into planes of bits, the lowest first. A plane of n bits is n lines of 64 bytes; with
m = 8 / n columns in a byte, line k, byte 4·r + j holds the bits of row r's columns 4·m·k + j, 4·m·k + 4 + j, …, the
first in its lowest bits:

    8 bits   line k, byte 4·r + j has row r's column 4·k + j
    4 bits   line k, byte 4·r + j has row r's column 8·k + j in its low and column 8·k + 4 + j in its high nibble
    2 bits   line k, byte 4·r + j has row r's columns 16·k + j, 16·k + 4 + j, 16·k + 8 + j and 16·k + 12 + j
    1 bit    line 0, byte 4·r + j has row r's columns j, 4 + j, 8 + j … 28 + j

A line is one AVX-512 register, two of AVX2, four of NEON; four columns of a row are one 32-bit lane. The head of a row
block (64 bytes) has a float32 unit per row, in formats that have units.

Row by row, a row's unit is ahead of its groups, and a group is its scalars and its codes: 8 bits as they are, 4 bits in
16 bytes of which byte i has column i in its low and column 16 + i in its high nibble.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lapinfer.quant import GROUP, LANES, ROWS
from lapinfer.quant.format import Format, RowLayout

LINE = ROWS * LANES
"""Bytes of a line."""
UNIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search gives for N = R · G groups: codes [32, N], scale and minimum [N], unit [R]."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    unit: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Grouped:
    """Quantized rows in groups of 32 columns, as the format says.

    codes: [R, C] of the format's code_type; scale, minimum: [R, ceil(C/32)] of its scalars; unit: [R] float32.
    """

    format: GroupFormat
    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None
    unit: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """float32 [R, C]: what the kernels multiply with."""
        return self.format.weights(self)

    def spread(self, per_group: np.ndarray) -> np.ndarray:
        """float32 [R, C]: the number of each column's group."""
        return np.repeat(per_group.astype(np.float32), GROUP, axis=1)[:, : self.codes.shape[1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupFormat(Format):
    """scalars: types of scale and minimum. planes: bits of the codes' planes. units: whether a row has one.
    signed: whether kernels multiply signed codes. by_row: whether there is a layout row by row.
    """

    scalars: tuple[type[np.generic], ...]
    planes: tuple[int, ...]
    code_type: type[np.generic] = np.uint8
    units: bool = False
    signed: bool = False
    by_row: bool = False

    @abstractmethod
    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        """The groups with the least squared error of the columns of x [32, N], N / rows groups of each row.

        x: float32 within ±most. w: weights of the errors [32, N]; None: all equal.
        """

    @abstractmethod
    def weights(self, groups: Grouped) -> np.ndarray:
        """float32 [R, C] that groups of this format mean."""

    def from_gguf(self, kind: str, blocks: np.ndarray) -> Grouped | None:
        """Groups of GGUF blocks [R, G, bytes] of one of stored_types, to the bit, or of nearest_types, as near as its
        scalars are; None where that can't be."""
        return None

    def holding(self, groups: Grouped) -> Grouped | None:
        """The same numbers, of another format; None where this one doesn't hold them."""
        return None

    @property
    def block_bytes(self) -> int:
        return ROWS * self.scalar_bytes + LINE * sum(self.planes)

    @property
    def head_bytes(self) -> int:
        return UNIT_BYTES * ROWS if self.units else 0

    @property
    def row(self) -> RowLayout | None:
        group_bytes = self.scalar_bytes + GROUP * sum(self.planes) // 8
        return RowLayout(UNIT_BYTES if self.units else 0, group_bytes) if self.by_row else None

    @property
    def activation(self) -> Literal["q8"]:
        return "q8"

    @property
    def scalar_bytes(self) -> int:
        """Bytes of a group's scale and minimum."""
        return sum(np.dtype(kind).itemsize for kind in self.scalars)


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales and minima of N groups, one of each row: as they are stored, and what they are worth."""

    scale: np.ndarray
    minimum: np.ndarray
    step: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedbackFormat(GroupFormat):
    """A format whose 4-bit codes may be chosen column by column, each column's error made good by those after it."""

    @abstractmethod
    def plain_units(self, weights: np.ndarray) -> np.ndarray:
        """Units [R] that fit the plain ranges of the groups of rows [R, C]."""

    @abstractmethod
    def grid(self, x: np.ndarray, w: np.ndarray, unit: np.ndarray) -> Grid:
        """The best grid of groups x [up to 32, N], with weights w of their errors, in units [N]."""


def joined(parts: Sequence[Grouped]) -> Grouped:
    """The rows of all parts, which have one format."""

    def rows(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        present = [array for array in arrays if array is not None]
        return np.concatenate(present) if present else None

    return Grouped(
        parts[0].format,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        rows([part.minimum for part in parts]),
        rows([part.unit for part in parts]),
    )


# ---- codes as lines ----


def plane_lines(codes: np.ndarray, bits: int) -> np.ndarray:
    """Lines [B, G, bits · 64] of codes [B, G, 8, 16, 4] below 2^bits."""
    per_byte = 8 // bits
    lines = codes[:, :, 0::per_byte]
    for i in range(1, per_byte):
        lines = lines | codes[:, :, i::per_byte] << bits * i
    return lines.reshape(*codes.shape[:2], -1)


def plane_codes(lines: np.ndarray, bits: int) -> np.ndarray:
    """The inverse."""
    if bits == 8:
        return lines.reshape(*lines.shape[:2], GROUP // LANES, ROWS, LANES)
    by_line = lines.reshape(*lines.shape[:2], bits, 1, ROWS, LANES)
    codes = np.concatenate([by_line >> bits * i & (1 << bits) - 1 for i in range(8 // bits)], axis=3)
    return codes.reshape(*lines.shape[:2], GROUP // LANES, ROWS, LANES)


def group_blocks(groups: Grouped) -> tuple[np.ndarray, np.ndarray]:
    """Heads [B, head bytes] and blocks [B, G, block bytes]."""
    form, (R, C) = groups.format, groups.codes.shape
    B, G = -(-R // ROWS), -(-C // GROUP)
    blocks = np.empty((B, G, form.block_bytes), np.uint8)
    offset = 0
    for kind, per_group in zip(form.scalars, (groups.scale, groups.minimum), strict=False):
        assert per_group is not None
        size = ROWS * np.dtype(kind).itemsize
        scalars = padded(per_group.astype(kind, copy=False), B * ROWS, G).reshape(B, ROWS, G).transpose(0, 2, 1)
        blocks[..., offset : offset + size] = np.ascontiguousarray(scalars).view(np.uint8)
        offset += size
    codes = padded(groups.codes.view(np.uint8), B * ROWS, G * GROUP)
    codes = codes.reshape(B, ROWS, G, GROUP // LANES, LANES).transpose(0, 2, 3, 1, 4)
    shift = 0
    for bits in form.planes:
        mask = np.uint8((1 << bits) - 1)
        blocks[..., offset : offset + LINE * bits] = plane_lines(codes >> np.uint8(shift) & mask, bits)
        offset += LINE * bits
        shift += bits
    heads = np.empty((B, 0), np.uint8)
    if groups.unit is not None:
        heads = padded(groups.unit[None], 1, B * ROWS).reshape(B, ROWS).astype(np.float32).view(np.uint8)
    return heads, blocks


def blocks_groups(form: GroupFormat, heads: np.ndarray, blocks: np.ndarray, shape: tuple[int, int]) -> Grouped:
    """The inverse, of a matrix [R, C]."""
    B, G, _ = blocks.shape
    offset, scalars = 0, []
    for kind in form.scalars:
        size = ROWS * np.dtype(kind).itemsize
        values = np.ascontiguousarray(blocks[..., offset : offset + size]).view(kind)
        scalars.append(np.ascontiguousarray(values.transpose(0, 2, 1).reshape(B * ROWS, G)[: shape[0]]))
        offset += size
    codes, shift = None, 0
    for bits in form.planes:
        plane = plane_codes(blocks[..., offset : offset + LINE * bits], bits)
        codes = plane if codes is None else codes | plane << np.uint8(shift)
        offset += LINE * bits
        shift += bits
    assert codes is not None
    by_row = codes.transpose(0, 3, 1, 2, 4).reshape(B * ROWS, G * GROUP)
    codes = np.ascontiguousarray(by_row[: shape[0], : shape[1]]).view(form.code_type)
    unit = heads.view(np.float32).reshape(-1)[: shape[0]] if form.units else None
    return Grouped(form, codes, *scalars, unit=unit)


def padded(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """With zeros up to so many rows and columns."""
    R, C = values.shape
    return values if (rows, columns) == (R, C) else np.pad(values, ((0, rows - R), (0, columns - C)))
