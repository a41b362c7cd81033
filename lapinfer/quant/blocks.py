"""The memory layout of packed matrices: blocks of 16 rows × 32 columns, and the order of gate and up rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import BAND, FORMATS, GROUP, ROWS, Grouped
from lapinfer.quant.search import check_finite, quantize

Rows = TypeVar("Rows", np.ndarray, Grouped)

SCALARS = {
    "q8": (np.float16,),
    "q4_1": (np.float16, np.float16),
    "q4": (np.uint8, np.uint8),
    "mxfp4": (np.uint8,),
    "q6": (np.uint8,),
}
"""What a group has ahead of its codes: scale and minimum."""

LOW_BYTES = ROWS * GROUP // 2
"""The lower four bits of a block's codes."""

LANES = 4
"""Columns of one row that lie side by side: a 32-bit lane of an integer dot product."""


def packed_shape(format: str, shape: tuple[int, int]) -> tuple[int, int]:
    """[row blocks, bytes of a row block] of a matrix [R, C]."""
    rows, columns = shape
    return -(-rows // ROWS), FORMATS[format].row_block_bytes(columns)


def packed_size(format: str, shape: tuple[int, int]) -> int:
    """Bytes of a packed matrix [R, C]."""
    blocks, row_block_bytes = packed_shape(format, shape)
    return blocks * row_block_bytes


def _spans(row_blocks: int) -> list[tuple[int, int, int]]:
    """(start, stop, width) of the row blocks in whole bands, and of those in the last."""
    whole = row_blocks // BAND * BAND
    spans = (0, whole, BAND), (whole, row_blocks, row_blocks - whole)
    return [span for span in spans if span[0] < span[1]]


def _in_bands(heads: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """uint8 [B, bytes] in bands, of heads [B, head bytes] and blocks [B, G, block bytes]."""
    B, G, size = blocks.shape
    packed = np.empty((B, heads.shape[1] + G * size), np.uint8)
    for start, stop, width in _spans(B):
        bands = packed[start:stop].reshape((stop - start) // width, -1)
        ahead = width * heads.shape[1]
        bands[:, :ahead] = heads[start:stop].reshape(len(bands), ahead)
        lines = bands[:, ahead:].reshape(len(bands), G, width, size)
        lines[:] = blocks[start:stop].reshape(len(bands), width, G, size).swapaxes(1, 2)
    return packed


def _out_of_bands(packed: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    """Heads and blocks again."""
    B, size = len(packed), FORMATS[format].block_bytes
    G = (packed.shape[1] - FORMATS[format].head_bytes) // size
    heads, blocks = np.empty((B, packed.shape[1] - G * size), np.uint8), np.empty((B, G, size), np.uint8)
    for start, stop, width in _spans(B):
        bands = packed[start:stop].reshape((stop - start) // width, -1)
        ahead = width * heads.shape[1]
        heads[start:stop] = bands[:, :ahead].reshape(stop - start, -1)
        lines = bands[:, ahead:].reshape(len(bands), G, width, size)
        blocks[start:stop] = lines.swapaxes(1, 2).reshape(stop - start, G, size)
    return heads, blocks


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 of uint16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pack(format: str, values: np.ndarray | Grouped) -> np.ndarray:
    """uint8 [ceil(R/16), bytes of a row block] of float32 [R, C], or of groups that have this format already.

    A matrix may be packed in slices of whole bands. Floats for quantized formats are quantized without importance.
    Raises CheckpointError for weights that the format can't hold: NaN, infinite, or too large.
    """
    if isinstance(values, Grouped):
        if values.format != format:
            raise ValueError(f"groups are {values.format}, expected {format}")
        heads, blocks = _group_blocks(values)
    elif FORMATS[format].grouped:
        heads, blocks = _group_blocks(quantize(FORMATS[format].name, values))
    else:
        check_finite(values)
        blocks = _float_blocks(format, np.asarray(values, np.float32))
        heads = np.empty((len(blocks), 0), np.uint8)
    return _in_bands(heads, blocks)


def unpack(format: str, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32 [R, C] of packed blocks: what the kernels multiply with."""
    if FORMATS[format].grouped:
        return unpack_groups(format, packed, shape).weights()
    _, blocks = _out_of_bands(packed, format)
    B, G, _ = blocks.shape
    stored = blocks.view({"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[format])
    values = from_bf16(stored) if format == "bf16" else stored.astype(np.float32)
    rows = values.reshape(B, G, GROUP, ROWS).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows.reshape(B * ROWS, G * GROUP)[: shape[0], : shape[1]])


def unpack_groups(format: str, packed: np.ndarray, shape: tuple[int, int]) -> Grouped:
    """Codes, scales and minima of packed blocks of a quantized format."""
    heads, blocks = _out_of_bands(packed, format)
    B, G, _ = blocks.shape
    kinds = SCALARS[format]
    at, scalars = 0, []
    for kind in kinds:
        size = ROWS * np.dtype(kind).itemsize
        values = np.ascontiguousarray(blocks[..., at : at + size]).view(kind)
        scalars.append(np.ascontiguousarray(values.transpose(0, 2, 1).reshape(B * ROWS, G)[: shape[0]]))
        at += size
    lines = blocks[..., at:]
    if format != "q8":
        low = lines[..., :LOW_BYTES].reshape(B, G, 4, 1, ROWS, LANES)
        low = np.concatenate([low & 15, low >> 4], axis=3).reshape(B, G, GROUP // LANES, ROWS, LANES)
        if format == "q6":
            high = lines[..., LOW_BYTES:].reshape(B, G, 2, 1, ROWS, LANES)
            high = np.concatenate([high >> 2 * i & 3 for i in range(4)], axis=3)
            low |= high.reshape(low.shape) << 4
        lines = low
    lines = lines.reshape(B, G, GROUP // LANES, ROWS, LANES).transpose(0, 3, 1, 2, 4)
    codes = np.ascontiguousarray(lines.reshape(B * ROWS, G * GROUP)[: shape[0], : shape[1]])
    if format == "q8":
        return Grouped("q8", codes.view(np.int8), scalars[0])
    unit = heads.view(np.float32).reshape(-1)[: shape[0]] if FORMATS[format].head_bytes else None
    return Grouped(FORMATS[format].name, codes, *scalars, unit=unit)


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
        parts = {
            name: None if part is None else take_rows(part, order)
            for name, part in (("minimum", values.minimum), ("unit", values.unit))
        }
        return replace(values, codes=take_rows(values.codes, order), scale=take_rows(values.scale, order), **parts)
    taken = values[order]
    taken[order < 0] = 0
    return taken


def _padded(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    R, C = values.shape
    return values if (rows, columns) == (R, C) else np.pad(values, ((0, rows - R), (0, columns - C)))


def _float_blocks(format: str, values: np.ndarray) -> np.ndarray:
    """Blocks [B, G, block bytes]."""
    B, G = -(-len(values) // ROWS), -(-values.shape[1] // GROUP)
    with np.errstate(over="ignore"):
        stored = {"f32": np.asarray, "f16": lambda v: v.astype(np.float16), "bf16": to_bf16}[format](values)
    infinite = (stored & 0x7FFF) == 0x7F80 if format == "bf16" else np.isinf(stored)
    if infinite.any():
        raise CheckpointError(f"row {np.argwhere(infinite)[0, 0]} has weights too large for {format}; use f32")
    lines = _padded(stored, B * ROWS, G * GROUP).reshape(B, ROWS, G, GROUP)
    return np.ascontiguousarray(lines.transpose(0, 2, 3, 1)).view(np.uint8).reshape(B, G, -1)


def _group_blocks(grouped: Grouped) -> tuple[np.ndarray, np.ndarray]:
    """Heads [B, head bytes] and blocks [B, G, block bytes]."""
    R, C = grouped.codes.shape
    B, G = -(-R // ROWS), -(-C // GROUP)
    whole = blocks = np.empty((B, G, FORMATS[grouped.format].block_bytes), np.uint8)
    at = 0
    for kind, per_group in zip(SCALARS[grouped.format], (grouped.scale, grouped.minimum), strict=False):
        assert per_group is not None
        size = ROWS * np.dtype(kind).itemsize
        lines = _padded(per_group.astype(kind, copy=False), B * ROWS, G).reshape(B, ROWS, G).transpose(0, 2, 1)
        blocks[..., at : at + size] = np.ascontiguousarray(lines).view(np.uint8)
        at += size
    codes = _padded(grouped.codes.view(np.uint8), B * ROWS, G * GROUP)
    lines = codes.reshape(B, ROWS, G, GROUP // LANES, LANES).transpose(0, 2, 3, 1, 4)
    if grouped.format == "q6":
        high = lines >> 4
        pairs = high[:, :, 0::4] | high[:, :, 1::4] << 2 | high[:, :, 2::4] << 4 | high[:, :, 3::4] << 6
        blocks[..., at + LOW_BYTES :] = pairs.reshape(B, G, -1)
        blocks = blocks[..., : at + LOW_BYTES]
        lines = lines & 15
    if grouped.format != "q8":
        lines = lines[:, :, 0::2] | lines[:, :, 1::2] << 4
    blocks[..., at:] = lines.reshape(B, G, -1)
    heads = np.empty((B, 0), np.uint8)
    if grouped.unit is not None:
        heads = _padded(grouped.unit[None], 1, B * ROWS).reshape(B, ROWS).astype(np.float32).view(np.uint8)
    return heads, whole
