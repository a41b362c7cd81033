"""What stored weights become, and what they lose by it: measured on some rows of each kind, before they are packed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.packing.assemble import Assembler
from lapinfer.quant.floats import FloatFormat
from lapinfer.quant.formats import FORMATS, STORED
from lapinfer.tensors import Tensor

ROWS, MATRICES = 64, 2
"""What is measured of each kind: so many rows of so many matrices."""
Sample = tuple[Tensor, int, int]
"""Rows of a tensor, all of one kind."""
EXACT = 1e-7
"""What float32 loses by the order in which a scale and a minimum are taken."""


@dataclass(frozen=True, slots=True)
class Becomes:
    """Matrices that are stored as `kind` and packed as `format`.

    loss: the norm of what is lost, by that of the weights; nan where that cannot be measured.
    """

    kind: str
    format: str
    matrices: int
    loss: float

    @property
    def told(self) -> str:
        measured = "with a loss" if isnan(self.loss) else f"losing {100 * self.loss:.2g} %"
        loss = "exactly" if self.loss <= EXACT else measured
        return f"{self.kind} → {self.format} {loss} ({self.matrices})"


def becomes(assembler: Assembler, tensors: Iterable[Tensor], formats: Mapping[str, str]) -> list[Becomes]:
    """Of each kind of quantized weights, the most frequent first. Floats are quantized by what was asked for."""
    counts: Counter[tuple[str, str]] = Counter()
    samples: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for tensor in tensors:
        if tensor.name not in formats:
            continue
        first = 0
        for piece in assembler.pieces(tensor.name):
            kind = assembler.checkpoint.stored_as(piece.source.name) if piece.source.name else ""
            if kind and not _is_float(kind):
                key = kind, formats[tensor.name]
                counts[key] += 1
                if len(samples[key]) < MATRICES:
                    samples[key].append((tensor, first, first + min(piece.rows, ROWS)))
            first += piece.rows
    return [Becomes(*key, count, _loss(assembler, samples[key], key[1])) for key, count in counts.most_common()]


def kept_lines(assembler: Assembler, tensors: Iterable[Tensor], formats: Mapping[str, str]) -> list[str]:
    """One line about all of them, if there are any."""
    found = becomes(assembler, tensors, formats)
    return [f"stored weights: {', '.join(each.told for each in found)}"] if found else []


def _is_float(kind: str) -> bool:
    return kind == "F64" or isinstance(STORED.get(kind), FloatFormat)


def _loss(assembler: Assembler, samples: Iterable[Sample], format: str) -> float:
    """nan where nothing can be measured: packing says why."""
    lost = whole = 0.0
    form = FORMATS[format]
    for tensor, start, stop in samples:
        try:
            values = assembler.read(tensor, start, stop)
            if isinstance(form, FloatFormat):
                kept = form.widened(form.narrowed(values))
            else:
                kept = assembler.read_grouped(tensor, start, stop, format, None).weights()
        except CheckpointError:
            return float("nan")
        lost += float(np.square(kept - values, dtype=np.float64).sum())
        whole += float(np.square(values, dtype=np.float64).sum())
    return float(np.sqrt(lost / whole)) if whole else float("nan")
