"""From rows of a checkpoint to the bytes of a packed tensor, slice by slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from lapinfer.packing.assemble import Assembler
from lapinfer.packing.entries import BankEntry, PackedEntry, parts_of
from lapinfer.quant import BAND, ROWS
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.quant.calibrate import quantize_with_feedback
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import joined
from lapinfer.quant.range import RangeError, check_small
from lapinfer.quant.rows import pack_rows

SLICE = 1 << 23
"""Weights that are read, quantized and written at a time."""

Inputs = Mapping[str, np.ndarray]
"""What is known of the inputs of matrices, by name: the importance [C] of columns, or the factors [C, C] of error
feedback; of each matrix of a bank [E, …]."""


def packed_slices(assembler: Assembler, entry: PackedEntry | BankEntry, inputs: Inputs) -> Iterator[np.ndarray]:
    """An entry's bytes as they are stored, in order: bands of rows, or of a bank one expert after the other."""
    if isinstance(entry, BankEntry):
        for expert in range(entry.experts):
            matrices = (np.concatenate(list(_matrix(assembler, part, expert, inputs))) for part in entry.parts)
            yield entry.experts_of([matrix[None] for matrix in matrices])
    elif entry.format is None:
        tensor = entry.tensor
        yield assembler.read(tensor, 0, tensor.rows).reshape(tensor.shape)
    else:
        several = len(entry.shape) > 2
        for copy in range(entry.tensor.copies):
            for packed in _matrix(assembler, entry, copy, inputs):
                yield packed[None] if several else packed


def wider_formats(assembler: Assembler, entries: Iterable[PackedEntry | BankEntry]) -> dict[str, str]:
    """The formats of those matrices that are beyond the range of the one they have; all of them are tried."""
    wider: dict[str, str] = {}
    for entry in entries:
        parts = parts_of(entry)
        found = {part.name: name for part in parts if (name := _holding(assembler, part)) != part.format and name}
        if found and parts[0].tensor.packing == "rows":  # one op reads both of a leaf's matrices
            most_exact = max(found.values(), key=lambda name: FORMATS[name].bits)
            found = {part.name: most_exact for part in parts}
        wider |= found
    return wider


def _holding(assembler: Assembler, entry: PackedEntry) -> str | None:
    """The format of a matrix, or the first wider one that holds it."""
    while entry.format is not None:
        try:
            for _ in packed_slices(assembler, entry, {}):
                pass
        except RangeError:
            entry = replace(entry, format=FORMATS[entry.format].wider)
        else:
            break
    return entry.format


def _matrix(assembler: Assembler, entry: PackedEntry, copy: int, inputs: Inputs) -> Iterator[np.ndarray]:
    """Slices of one matrix, of those that a tensor [n, R, C] has."""
    tensor = entry.tensor
    measured = inputs.get(tensor.name)
    if measured is not None and len(tensor.shape) > 2:
        measured = measured[copy]
    order = tensor.row_order
    order = np.where(order < 0, -1, order + copy * (tensor.rows // tensor.copies))
    if measured is not None and measured.ndim == 2:
        return _with_feedback(assembler, entry, order, factors=measured)
    return _in_slices(assembler, entry, order, importance=measured)


def _steps(columns: int, order: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each slice: whole bands."""
    step = max(SLICE // max(columns, 1) // (BAND * ROWS), 1) * BAND * ROWS
    for start in range(0, len(order), step):
        yield order[start : start + step]


def _with_feedback(
    assembler: Assembler, entry: PackedEntry, order: np.ndarray, factors: np.ndarray
) -> Iterator[np.ndarray]:
    """A matrix that is quantized at once with error feedback. factors: [C, C]."""
    tensor, format = entry.tensor, str(entry.format)
    first = int(order[order >= 0].min())
    with assembler.naming(f"{tensor.name}, all rows"):
        grouped = quantize_with_feedback(format, assembler.read(tensor, first, int(order.max()) + 1), factors)
    for rows in _steps(tensor.columns, order):
        yield pack(format, take_rows(grouped, np.where(rows < 0, -1, rows - first)))


def _in_slices(
    assembler: Assembler, entry: PackedEntry, order: np.ndarray, importance: np.ndarray | None
) -> Iterator[np.ndarray]:
    """A matrix of which only one slice is in memory at a time. importance: [C] of its columns."""
    tensor, format = entry.tensor, str(entry.format)
    packed = pack_rows if tensor.packing == "rows" else pack
    for rows in _steps(tensor.columns, order):
        wanted = np.unique(rows[rows >= 0])
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        spans = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        place = np.where(rows < 0, -1, np.searchsorted(wanted, rows))
        if not FORMATS[format].grouped:
            values = take_rows(np.concatenate([assembler.read(tensor, *span) for span in spans]), place)
            with assembler.naming(f"{tensor.name} from row {spans[0][0]}"):
                stored = packed(format, values)
                _check_floats(format, values, by_token=tensor.layer < 0)
            yield stored
        else:
            grouped = joined([assembler.read_grouped(tensor, *span, format, importance) for span in spans])
            yield packed(format, take_rows(grouped, place))


def _check_floats(format: str, values: np.ndarray, *, by_token: bool) -> None:
    form = FORMATS[format]
    assert isinstance(form, FloatFormat)
    check_small(form, values, lambda: form.widened(form.narrowed(values)), by_token=by_token)
