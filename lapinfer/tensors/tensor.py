"""The record of a weight: its name, shape and role, and what others need to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.blocks import interleaved_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import row_bytes
from lapinfer.spec import NormSpec

Part = Literal["embedding", "attention", "convolution", "recurrence", "kv", "router", "experts", "feed-forward", "head"]
"""What bytes are accounted as. `kv` is what goes from position to position: keys and values; a convolution's kernel
and the inputs that it sees; states of recurrences."""

Role = Literal["matrix", "router", "norm", "bias", "table", "scalars"]
"""matrix: multiplied with activations, so packed and quantized. router: a matrix that decides which experts are read,
never quantized. The others stay float32; a table is read in rows."""

Packing = Literal["blocks", "groups", "gate_up", "rows"]
"""How a matrix is packed: in blocks of 16 rows; padded to whole groups of 32 rows, where its results become
activations; the same with gate and up alternating in blocks of 16; row by row, where single rows are read."""

Reads = Literal["step", "token", "wanted", "logits", "best", "expert", "node", "load"]
"""How much of a tensor a step reads: all of it; a row for each token; all if logits or hidden states are wanted; all if
logits are; all if only the best of them are; the share of each expert that is chosen; of each node that a token meets;
nothing, because it was read when the model was loaded."""

Inputs = Literal["own", "router", "expert"]
"""What a matrix multiplies: inputs of its own, those of its layer's router, or of each expert the tokens it gets."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight: `module` and `suffix` are its name within its layer (−1: of no layer).

    packing: of matrices alone. bank: the name of the bank whose experts have this matrix. inputs: None where what
    the matrix multiplies is not measured; inputs_vary: whether random tokens give inputs unlike those of text.
    """

    layer: int
    module: str
    shape: tuple[int, ...]
    part: Part
    role: Role
    suffix: Literal["", ".weight", ".bias", ".selection_bias", ".norms"] = ""
    packing: Packing | None = None
    reads: Reads = "step"
    bank: str | None = None
    inputs: Inputs | None = None
    inputs_vary: bool = False

    @property
    def label(self) -> str:
        """The name within its layer; of a matrix, also that of the op that multiplies it."""
        return self.module + self.suffix

    @property
    def name(self) -> str:
        return f"{layer_prefix(self.layer)}{self.label}"

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is packed in a weight format; all else is float32."""
        return self.packing is not None

    @property
    def columns(self) -> int:
        """Numbers of a row as it is stored in a checkpoint; 1 for vectors, and for a bank's biases."""
        return self.shape[-1] if len(self.shape) > 1 and self.role != "bias" else 1

    @property
    def rows(self) -> int:
        """Rows of all its matrices together, as they are stored in a checkpoint."""
        return self.size // self.columns

    @property
    def copies(self) -> int:
        """How many matrices [R, C] it has."""
        return prod(self.shape[:-2])

    @property
    def row_order(self) -> np.ndarray:
        """Which row of a matrix each packed row holds; −1: none, zeros."""
        rows = self.shape[-2]
        match self.packing:
            case "gate_up":
                return interleaved_rows(rows // 2)
            case "rows":
                return np.arange(rows)
            case packing:
                order = np.arange(_padded(rows, GROUP if packing == "groups" else ROWS))
                return np.where(order < rows, order, -1)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """The shape with the rows that a packed matrix has."""
        if self.packing in (None, "rows"):
            return self.shape
        rows = self.shape[-2]
        match self.packing:
            case "gate_up":
                rows = 2 * _padded(rows // 2, GROUP)
            case "groups":
                rows = _padded(rows, GROUP)
            case _:
                rows = _padded(rows, ROWS)
        return (*self.shape[:-2], rows, self.shape[-1])

    def nbytes(self, format: str | None) -> int:
        """Bytes in a weight format; None: float32 as it is."""
        if self.packing is None or format is None:
            return 4 * self.size
        *copies, rows, columns = self.packed_shape
        if self.packing == "rows":
            return prod(copies) * rows * row_bytes(format, columns)
        return prod(copies) * (rows // ROWS) * FORMATS[format].row_block_bytes(columns)


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"layers.{layer}." if layer >= 0 else ""


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def norm_tensors(layer: int, module: str, norm: NormSpec | None, width: int, part: Part) -> Iterator[Tensor]:
    if norm is None:
        return
    reads = "wanted" if part == "head" else "step"
    if norm.weight:
        yield Tensor(layer, module, (width,), part, "norm", ".weight", reads=reads)
    if norm.bias:
        yield Tensor(layer, module, (width,), part, "norm", ".bias", reads=reads)
