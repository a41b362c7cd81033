"""The memory layout of packed matrices: blocks of 16 rows × 32 columns, and the order of gate and up rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import FORMATS, GROUP, ROWS, Grouped
from lapinfer.quant.search import check_finite, quantize

Rows = TypeVar("Rows", np.ndarray, Grouped)

LANES = 4
"""Columns of one row that lie side by side: a 32-bit lane of an integer dot product."""


def packed_shape(format: str, shape: tuple[int, int]) -> tuple[int, int, int]:
    """[row blocks, column groups, block bytes] of a matrix [R, C]."""
    rows, columns = shape
    return -(-rows // ROWS), -(-columns // GROUP), FORMATS[format].block_bytes


def packed_size(format: str, shape: tuple[int, int]) -> int:
    """Bytes of a packed matrix [R, C]."""
    blocks, groups, block_bytes = packed_shape(format, shape)
    return blocks * groups * block_bytes


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 of uint16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pack(format: str, values: np.ndarray | Grouped) -> np.ndarray:
    """uint8 [ceil(R/16), ceil(C/32), block_bytes] of float32 [R, C], or of groups that have this format already.

    Floats for q8 and q4 are quantized without importance. Raises CheckpointError for weights that the format
    can't hold: NaN, infinite, or too large.
    """
    if isinstance(values, Grouped):
        if values.format != format:
            raise ValueError(f"groups are {values.format}, expected {format}")
        return _pack_groups(values)
    if format in ("q8", "q4"):
        return _pack_groups(quantize(format, values))
    check_finite(values)
    return _pack_floats(format, np.asarray(values, np.float32))


def unpack(format: str, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32 [R, C] of packed blocks: what the kernels multiply with."""
    if format in ("q8", "q4"):
        return unpack_groups(format, packed, shape).weights()
    blocks, groups, _ = packed_shape(format, shape)
    stored = np.ascontiguousarray(packed).view({"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[format])
    values = from_bf16(stored) if format == "bf16" else stored.astype(np.float32)
    rows = values.reshape(blocks, groups, GROUP, ROWS).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows.reshape(blocks * ROWS, groups * GROUP)[: shape[0], : shape[1]])


def unpack_groups(format: str, packed: np.ndarray, shape: tuple[int, int]) -> Grouped:
    """Codes, scales and minima of packed q8 or q4 blocks."""
    blocks, groups, _ = packed_shape(format, shape)
    heads = 2 if format == "q4" else 1

    def per_row(k: int) -> np.ndarray:
        half = np.ascontiguousarray(packed[..., 2 * ROWS * k : 2 * ROWS * (k + 1)]).view(np.float16)
        return np.ascontiguousarray(half.transpose(0, 2, 1).reshape(blocks * ROWS, groups)[: shape[0]])

    lines = packed[..., 2 * ROWS * heads :]
    if format == "q4":
        lines = lines.reshape(blocks, groups, 4, 1, ROWS, LANES)
        lines = np.concatenate([lines & 15, lines >> 4], axis=3)
    lines = lines.reshape(blocks, groups, GROUP // LANES, ROWS, LANES).transpose(0, 3, 1, 2, 4)
    codes = np.ascontiguousarray(lines.reshape(blocks * ROWS, groups * GROUP)[: shape[0], : shape[1]])
    if format == "q4":
        return Grouped("q4", codes, per_row(0), per_row(1))
    return Grouped("q8", codes.view(np.int8), per_row(0))


def interleaved_rows(width: int) -> np.ndarray:
    """Rows of a gate_up matrix [2F, C] (gate first) in packed order; −1 is a row of zeros.

    Gate and up alternate in blocks of 16, so that one chunk of work sees both; each side is padded to a multiple
    of 32, because the kernel makes groups of 32 results.
    """
    padded = -(-width // GROUP) * GROUP
    side = np.where(np.arange(padded) < width, np.arange(padded), -1).reshape(-1, 1, ROWS)
    return np.concatenate([side, np.where(side < 0, -1, side + width)], axis=1).reshape(-1)


def separated_rows(width: int) -> np.ndarray:
    """The inverse: where each row of [2F, C] lies in packed order."""
    order = interleaved_rows(width)
    packed = np.empty(2 * width, np.int64)
    packed[order[order >= 0]] = np.flatnonzero(order >= 0)
    return packed


def interleave(gate_up: Rows) -> Rows:
    """Rows of a gate_up matrix [2F, C], or of its groups, in packed order."""
    rows = gate_up.codes if isinstance(gate_up, Grouped) else gate_up
    return take_rows(gate_up, interleaved_rows(len(rows) // 2))


def take_rows(values: Rows, order: np.ndarray) -> Rows:
    """Rows in the given order; −1 is a row of zeros."""
    if isinstance(values, Grouped):
        minimum = None if values.minimum is None else take_rows(values.minimum, order)
        return replace(
            values, codes=take_rows(values.codes, order), scale=take_rows(values.scale, order), minimum=minimum
        )
    taken = values[order]
    taken[order < 0] = 0
    return taken


def _padded(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    R, C = values.shape
    return values if (rows, columns) == (R, C) else np.pad(values, ((0, rows - R), (0, columns - C)))


def _pack_floats(format: str, values: np.ndarray) -> np.ndarray:
    blocks, groups, block_bytes = packed_shape(format, values.shape)
    with np.errstate(over="ignore"):
        stored = {"f32": np.asarray, "f16": lambda v: v.astype(np.float16), "bf16": to_bf16}[format](values)
    infinite = (stored & 0x7FFF) == 0x7F80 if format == "bf16" else np.isinf(stored)
    if infinite.any():
        raise CheckpointError(f"row {np.argwhere(infinite)[0, 0]} has weights too large for {format}; use f32")
    lines = _padded(stored, blocks * ROWS, groups * GROUP).reshape(blocks, ROWS, groups, GROUP)
    return np.ascontiguousarray(lines.transpose(0, 2, 3, 1)).view(np.uint8).reshape(blocks, groups, block_bytes)


def _pack_groups(grouped: Grouped) -> np.ndarray:
    blocks, groups, block_bytes = packed_shape(grouped.format, grouped.codes.shape)
    packed = np.empty((blocks, groups, block_bytes), np.uint8)
    at = 0
    for per_row in (grouped.scale,) if grouped.minimum is None else (grouped.scale, grouped.minimum):
        half = _padded(per_row, blocks * ROWS, groups).reshape(blocks, ROWS, groups).transpose(0, 2, 1)
        packed[..., at : at + 2 * ROWS] = np.ascontiguousarray(half).view(np.uint8)
        at += 2 * ROWS
    codes = _padded(grouped.codes.view(np.uint8), blocks * ROWS, groups * GROUP)
    lines = codes.reshape(blocks, ROWS, groups, GROUP // LANES, LANES).transpose(0, 2, 3, 1, 4)
    if grouped.format == "q4":
        lines = lines[:, :, 0::2] | lines[:, :, 1::2] << 4
    packed[..., at:] = lines.reshape(blocks, groups, -1)
    return packed
