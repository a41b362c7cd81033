"""The memory layout of packed matrices: blocks of 16 rows × 32 columns, and the order of gate and up rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from lapinfer.quant import BAND, GROUP, ROWS
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.formats import FORMATS, group_format
from lapinfer.quant.groups import Grouped, blocks_groups, group_blocks, padded
from lapinfer.quant.quantize import check_finite, quantize

Rows = TypeVar("Rows", np.ndarray, Grouped)


def _spans(row_blocks: int) -> list[tuple[int, int, int]]:
    """(start, stop, width) of the row blocks in full bands, and of those in the last."""
    full = row_blocks // BAND * BAND
    spans = (0, full, BAND), (full, row_blocks, row_blocks - full)
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


def pack(format: str, values: np.ndarray | Grouped) -> np.ndarray:
    """uint8 [ceil(R/16), bytes of a row block] of float32 [R, C], or of groups that have this format already.

    A matrix may be packed in slices of whole bands. Floats for quantized formats are quantized without importance.
    Raises CheckpointError for weights that the format can't hold: NaN, infinite, or too large.
    """
    form = FORMATS[format]
    if isinstance(form, FloatFormat) and not isinstance(values, Grouped):
        check_finite(values)
        blocks = _float_blocks(form, np.asarray(values, np.float32))
        return _in_bands(np.empty((len(blocks), 0), np.uint8), blocks)
    groups = values if isinstance(values, Grouped) else quantize(format, values)
    if groups.format is not form:
        raise ValueError(f"groups are {groups.format.name}, expected {format}")
    return _in_bands(*group_blocks(groups))


def unpack(format: str, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32 [R, C] of packed blocks: what the kernels multiply with."""
    form = FORMATS[format]
    if not isinstance(form, FloatFormat):
        return unpack_groups(format, packed, shape).weights()
    _, blocks = _out_of_bands(packed, format)
    B, G, _ = blocks.shape
    values = form.widened(blocks.view(form.dtype))
    rows = values.reshape(B, G, GROUP, ROWS).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows.reshape(B * ROWS, G * GROUP)[: shape[0], : shape[1]])


def unpack_groups(format: str, packed: np.ndarray, shape: tuple[int, int]) -> Grouped:
    """Codes, scales and minima of packed blocks of a quantized format."""
    return blocks_groups(group_format(format), *_out_of_bands(packed, format), shape)


def interleaved_rows(width: int) -> np.ndarray:
    """Rows of a gate_up matrix [2F, C] (gate first) in packed order; −1 is a row of zeros.

    Gate and up alternate in blocks of 16, so that one chunk of work sees both; each side is padded to a multiple
    of 32, because the kernel makes groups of 32 results.
    """
    padded = -(-width // GROUP) * GROUP
    side = np.where(np.arange(padded) < width, np.arange(padded), -1).reshape(-1, 1, ROWS)
    return np.concatenate([side, np.where(side < 0, -1, side + width)], axis=1).reshape(-1)


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


def _float_blocks(form: FloatFormat, values: np.ndarray) -> np.ndarray:
    """Blocks [B, G, block bytes]."""
    B, G = -(-len(values) // ROWS), -(-values.shape[1] // GROUP)
    lines = padded(form.store(values), B * ROWS, G * GROUP).reshape(B, ROWS, G, GROUP)
    return np.ascontiguousarray(lines.transpose(0, 2, 3, 1)).view(np.uint8).reshape(B, G, -1)
