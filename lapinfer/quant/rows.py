"""Matrices row by row: for what is read one row at a time, the nodes of a tree and the neurons of narrow leaves.

A row is its head (q4's unit, float32), then a group for every 32 columns; missing columns are zero:

    f32, f16, bf16   32 numbers
    q8   (34 bytes)  f16 scale, 32 int8 codes
    q4   (18 bytes)  u8 scale, u8 minimum, 16 bytes: byte i has column i in its low and column 16 + i in its high nibble

The numbers are those of the same format in blocks (lapinfer.quant).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import FORMATS, GROUP, Grouped, RowLayout
from lapinfer.quant.blocks import from_bf16, to_bf16
from lapinfer.quant.search import check_finite, quantize

NEAREST: Final = {"q4_1": "q4", "mxfp4": "q4", "q6": "q8"}
"""What other formats become here."""


def row_layout(format: str) -> RowLayout:
    """The layout of a format that has rows."""
    layout = FORMATS[format].row
    if layout is None:
        raise ValueError(f"{format} is not stored row by row")
    return layout


def row_bytes(format: str, columns: int) -> int:
    """Bytes of a row."""
    return row_layout(format).row_bytes(columns)


def pack_rows(format: str, values: np.ndarray | Grouped) -> np.ndarray:
    """uint8 [R, bytes of a row] of float32 [R, C], or of groups that have this format already."""
    if format in ("q8", "q4"):
        grouped = values if isinstance(values, Grouped) else quantize(format, values)
        if grouped.format != format:
            raise ValueError(f"groups are {grouped.format}, expected {format}")
        return _packed_groups(grouped)
    assert isinstance(values, np.ndarray)
    check_finite(values)
    with np.errstate(over="ignore"):
        stored = {"f32": np.asarray, "f16": lambda v: v.astype(np.float16), "bf16": to_bf16}[format](values)
    infinite = (stored & 0x7FFF) == 0x7F80 if format == "bf16" else np.isinf(stored)
    if infinite.any():
        raise CheckpointError(f"row {np.argwhere(infinite)[0, 0]} has weights too large for {format}; use f32")
    R, C = stored.shape
    padded = np.zeros((R, -(-C // GROUP) * GROUP), stored.dtype)
    padded[:, :C] = stored
    return padded.view(np.uint8)


def unpack_rows(format: str, packed: np.ndarray, columns: int) -> np.ndarray:
    """float32 [R, C]: what the kernels multiply with."""
    if format == "f32":
        return np.ascontiguousarray(packed).view(np.float32)[:, :columns].copy()
    if format in ("f16", "bf16"):
        stored = np.ascontiguousarray(packed).view(np.float16 if format == "f16" else np.uint16)[:, :columns]
        return from_bf16(stored) if format == "bf16" else stored.astype(np.float32)
    layout = row_layout(format)
    head, size = layout.head_bytes, layout.group_bytes
    R, G = len(packed), (packed.shape[1] - head) // size
    groups = packed[:, head:].reshape(R, G, size)
    if format == "q8":
        scale = np.ascontiguousarray(groups[..., :2]).view(np.float16)[..., 0]
        return Grouped("q8", groups[..., 2:].reshape(R, -1).view(np.int8)[:, :columns], scale).weights()
    unit = np.ascontiguousarray(packed[:, :head]).view(np.float32)[:, 0]
    codes = np.concatenate([groups[..., 2:] & 15, groups[..., 2:] >> 4], axis=2).reshape(R, -1)[:, :columns]
    return Grouped("q4", codes, groups[..., 0], groups[..., 1], unit).weights()


def _packed_groups(grouped: Grouped) -> np.ndarray:
    R, C = grouped.codes.shape
    layout = row_layout(grouped.format)
    head, size = layout.head_bytes, layout.group_bytes
    G = -(-C // GROUP)
    packed = np.zeros((R, head + G * size), np.uint8)
    groups = np.zeros((R, G, size), np.uint8)
    codes = np.zeros((R, G * GROUP), np.uint8)
    codes[:, :C] = grouped.codes.view(np.uint8)
    codes = codes.reshape(R, G, GROUP)
    if grouped.format == "q8":
        groups[..., :2] = grouped.scale.astype(np.float16)[..., None].view(np.uint8)
        groups[..., 2:] = codes
    else:
        assert grouped.unit is not None
        assert grouped.minimum is not None
        packed[:, :head] = grouped.unit.astype(np.float32)[:, None].view(np.uint8)
        groups[..., 0], groups[..., 1] = grouped.scale, grouped.minimum
        groups[..., 2:] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    packed[:, head:] = groups.reshape(R, -1)
    return packed
