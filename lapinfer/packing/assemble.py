"""From a checkpoint's tensors to rows of the model's, in whatever order, layout or number of pieces they are stored."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from lapinfer.checkpoint import Checkpoint
from lapinfer.errors import CheckpointError
from lapinfer.families import Source
from lapinfer.quant.blocks import take_rows
from lapinfer.quant.choice import Stored
from lapinfer.quant.formats import KEPT, group_format
from lapinfer.quant.groups import Grouped, joined
from lapinfer.quant.quantize import quantize
from lapinfer.quant.range import check_small
from lapinfer.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """A source as it lies in the checkpoint: `rows` that it gives, of `columns` numbers (0: any; 1 for vectors)."""

    source: Source
    rows: int
    columns: int


class Assembler:
    """Rows of a model's tensors from a checkpoint's. The rows of a bank [E, R, C] are those of all experts, E · R."""

    def __init__(self, checkpoint: Checkpoint, sources: Mapping[str, tuple[Source, ...]]):
        self.checkpoint, self.sources = checkpoint, sources
        self._pieces: dict[str, list[Piece]] = {}
        self._ends: dict[str, list[int]] = {}

    def _stored(self, source: Source) -> tuple[int, ...]:
        """The shape of the matrix or vector that a source takes its part of; a number is a vector of one."""
        stored = self.checkpoint.shape(source.name)  # an error that says more where it is missing
        shape = stored or (1,)
        if source.index is not None:
            if len(stored) < 2 or source.index >= stored[0]:
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {source.name!r} has shape {stored}, config.json says that it has "
                    f"an expert {source.index}"
                )
            shape = stored[1:]
        elif len(stored) == 3:
            shape = (stored[0] * stored[1], stored[2])
        return shape[::-1] if source.transposed else shape

    def pieces(self, name: str) -> list[Piece]:
        """What a tensor is made of, in order."""
        if name not in self._pieces:
            self._pieces[name] = [self._piece(source) for source in self.sources[name]]
        return self._pieces[name]

    def _piece(self, source: Source) -> Piece:
        """A source's part, checked to lie inside the stored tensor."""
        if not source.name:
            return Piece(source, source.stop or 0, 0)
        shape = self._stored(source)
        rows, columns = (*shape, 1)[:2]
        stop = rows if source.stop is None else source.stop
        first, last = source.columns or (0, columns)
        if not 1 <= len(shape) <= 2 or stop > rows or last > columns:
            wanted = (stop, last)[:: -1 if source.transposed else 1]
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {source.name!r} has shape {self.checkpoint.shape(source.name)}, "
                f"config.json says at least {wanted}"
            )
        return Piece(source, len(range(source.start, stop, source.step)), last - first)

    def check(self, tensor: Tensor) -> None:
        """Whether the stored tensors have the shape that the config promises."""
        columns, rows = tensor.columns, tensor.rows
        pieces = self.pieces(tensor.name)
        for piece in pieces:
            source = piece.source
            narrower = source.columns is not None and piece.columns < columns
            is_all = source.stop is None and source.step == 1 and source.index is None and len(pieces) == 1
            if source.name and not narrower and (piece.columns != columns or (is_all and piece.rows != rows)):
                wanted = (rows if is_all else piece.rows, columns) if columns > 1 else (rows if is_all else piece.rows,)
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {source.name!r} has shape {self.checkpoint.shape(source.name)}, "
                    f"config.json says {wanted[::-1] if source.transposed else wanted}"
                )
        if sum(piece.rows for piece in pieces) != rows:
            names = ", ".join(dict.fromkeys(source.name for source in self.sources[tensor.name] if source.name))
            names = names if len(names) < 200 else names[:200] + " …"
            raise CheckpointError(
                f"{self.checkpoint.path}: {names} together have {sum(piece.rows for piece in pieces)} rows, "
                f"config.json says {rows}"
            )

    def check_all(self, tensors: Iterable[Tensor]) -> None:
        """`check` of each, and whether the stored tensors have no more than what is used of them."""
        used: Counter[str] = Counter()
        for tensor in tensors:
            self.check(tensor)
            for piece in self.pieces(tensor.name):
                used[piece.source.name] += piece.rows * piece.columns
        for name, count in used.items():
            if name and count < prod(shape := self.checkpoint.shape(name)):
                raise CheckpointError(
                    f"{self.checkpoint.path}: tensor {name!r} has shape {shape}, of which a model of this config.json "
                    f"uses only {count} numbers"
                )

    def formats_of(self, name: str) -> Stored:
        """The formats that hold its sources without a loss, or with the least; None: there is no such format."""
        named = {source.name for source in self.sources[name] if source.name}
        kinds = {self.checkpoint.stored_as(source) for source in named}
        return {KEPT[kind].name if kind in KEPT else None for kind in kinds}

    def _spans(self, name: str, start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
        """The pieces that rows start:stop are made of, and which of each piece's rows."""
        pieces = self.pieces(name)
        if name not in self._ends:
            self._ends[name] = list(accumulate(piece.rows for piece in pieces))
        ends = self._ends[name]
        for i in range(bisect_right(ends, start), len(pieces)):
            first = ends[i] - pieces[i].rows
            if first >= stop:
                return
            yield pieces[i], max(start - first, 0), min(stop - first, pieces[i].rows)

    def read(self, tensor: Tensor, start: int, stop: int) -> np.ndarray:
        """Rows start:stop as float32 [rows, columns], checked to be numbers."""
        parts = [_widened(self._values(*span), tensor.columns) for span in self._spans(tensor.name, start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, source: Source, low: int, high: int) -> np.ndarray:
        """Stored rows low:high of the matrix that a source means; of a bank, over the experts' borders."""
        if source.index is not None:
            return self.checkpoint.read(source.name, source.index, source.index + 1)[0][low:high]
        shape = self.checkpoint.shape(source.name)
        if len(shape) < 3:
            return np.atleast_1d(self.checkpoint.read(source.name, low, high))
        first = low // shape[1]
        experts = self.checkpoint.read(source.name, first, -(-high // shape[1]))
        return experts.reshape(-1, shape[2])[low - first * shape[1] : high - first * shape[1]]

    def _values(self, piece: Piece, low: int, high: int) -> np.ndarray:
        """Rows low:high of a piece, [rows, columns]."""
        source = piece.source
        if not source.name:
            return np.zeros((high - low, 0), np.float32)
        first, last = source.start + low * source.step, source.start + (high - 1) * source.step + 1
        if source.transposed:
            stored = self._stored(source)
            values = self._rows(source, 0, stored[-1])[:, first : last : source.step].T
        else:
            values = self._rows(source, first, last)[:: source.step]
        values = values.reshape(high - low, -1)
        if source.columns is not None:
            values = values[:, slice(*source.columns)]
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {source.name!r} has values that are not numbers (NaN or infinite)"
            )
        return values

    def read_grouped(
        self, tensor: Tensor, start: int, stop: int, format: str, importance: np.ndarray | None
    ) -> Grouped:
        """The same rows in groups: as they are stored where they have this format already, else quantized."""
        parts = []
        for piece, low, high in self._spans(tensor.name, start, stop):
            part = self._stored_groups(piece.source, low, high)
            if part is not None and part.format.name != format:
                part = group_format(format).holding(part)
            if part is None:
                values = _widened(self._values(piece, low, high), tensor.columns)
                with self.naming(f"tensor {piece.source.name!r} from row {low}"):
                    part = quantize(format, values, importance)
                    check_small(part.format, values, part.weights, by_token=tensor.layer < 0)
            parts.append(part)
        return joined(parts)

    def _stored_groups(self, source: Source, low: int, high: int) -> Grouped | None:
        """Rows low:high of a source as groups, where they are stored so."""
        if not source.name or source.transposed or source.columns is not None:
            return None
        first, last = source.start + low * source.step, source.start + (high - 1) * source.step + 1
        if source.index is not None:
            stored = self.checkpoint.read_grouped(source.name, source.index, source.index + 1)
            return None if stored is None else take_rows(stored, np.arange(first, last, source.step))
        if len(self.checkpoint.shape(source.name)) > 2:
            return None
        stored = self.checkpoint.read_grouped(source.name, first, last)
        if stored is None or source.step == 1:
            return stored
        return take_rows(stored, np.arange(0, last - first, source.step))

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        """Errors of quantization say which row, not of what."""
        try:
            yield
        except CheckpointError as error:
            raise type(error)(f"{self.checkpoint.path}: {what}: {error}") from error


def _widened(values: np.ndarray, columns: int) -> np.ndarray:
    """Zeros for missing columns."""
    missing = columns - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing))) if missing else values
