"""Matrices row by row: for what is read one row at a time, the nodes of a tree and the neurons of narrow leaves.

A row is its head, then a group for every 32 columns (floats.py and groups.py say what these hold); missing columns are
zero. The numbers are those of the same format in blocks.
"""

from __future__ import annotations

import numpy as np

from lapinfer.quant import GROUP
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.format import RowLayout
from lapinfer.quant.formats import FORMATS, group_format
from lapinfer.quant.groups import Grouped, padded
from lapinfer.quant.quantize import check_finite, quantize


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
    form = FORMATS[format]
    if isinstance(form, FloatFormat) and not isinstance(values, Grouped):
        check_finite(values)
        stored = form.store(values)
        rows = np.zeros((len(stored), -(-stored.shape[1] // GROUP) * GROUP), stored.dtype)
        rows[:, : stored.shape[1]] = stored
        return rows.view(np.uint8)
    groups = values if isinstance(values, Grouped) else quantize(format, values)
    if groups.format is not form:
        raise ValueError(f"groups are {groups.format.name}, expected {format}")
    return _packed_groups(groups)


def unpack_rows(format: str, packed: np.ndarray, columns: int) -> np.ndarray:
    """float32 [R, C]: what the kernels multiply with."""
    form = FORMATS[format]
    if isinstance(form, FloatFormat):
        return form.widened(np.ascontiguousarray(packed).view(form.dtype)[:, :columns])
    form, layout = group_format(format), row_layout(format)
    R = len(packed)
    groups = packed[:, layout.head_bytes :].reshape(R, -1, layout.group_bytes)
    offset, scalars = 0, []
    for kind in form.scalars:
        size = np.dtype(kind).itemsize
        scalars.append(np.ascontiguousarray(groups[..., offset : offset + size]).view(kind)[..., 0])
        offset += size
    codes = groups[..., offset:]
    if form.planes == (4,):
        codes = np.concatenate([codes & 15, codes >> 4], axis=2)
    codes = codes.reshape(R, -1)[:, :columns].view(form.code_type)
    unit = np.ascontiguousarray(packed[:, : layout.head_bytes]).view(np.float32)[:, 0] if form.units else None
    return Grouped(form, codes, *scalars, unit=unit).weights()


def _packed_groups(grouped: Grouped) -> np.ndarray:
    form, layout = grouped.format, row_layout(grouped.format.name)
    R, C = grouped.codes.shape
    G = -(-C // GROUP)
    codes = padded(grouped.codes.view(np.uint8), R, G * GROUP).reshape(R, G, GROUP)
    if form.planes == (4,):
        codes = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    parts = []
    for kind, per_group in zip(form.scalars, (grouped.scale, grouped.minimum), strict=False):
        assert per_group is not None
        parts.append(np.ascontiguousarray(per_group.astype(kind, copy=False))[..., None].view(np.uint8))
    groups = np.concatenate([*parts, codes], axis=2).reshape(R, -1)
    if grouped.unit is None:
        return groups
    head = np.ascontiguousarray(grouped.unit.astype(np.float32))[:, None].view(np.uint8)
    assert head.shape[1] == layout.head_bytes
    return np.concatenate([head, groups], axis=1)
