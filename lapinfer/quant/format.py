"""What any weight format is: its bytes, and what packing decides by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from lapinfer.quant import GROUP, ROWS

ModelSize = Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Bytes of a row that is stored by itself (rows.py): its head, then groups of 32 columns."""

    head_bytes: int
    group_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of so many columns."""
        return self.head_bytes + -(-columns // GROUP) * self.group_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Format(ABC):
    """A packed weight format.

    name: that of its file, and what users call it. id: the number that kernels' operands carry; it never changes.
    max_error: what a number loses at most if all errors weigh the same, in parts of itself (floats) or of its group's
    largest (of the matrix's, where that is too small for a scale). Of a new format, measure it on random numbers.
    most: the largest number that it holds. least: a row without a larger one may lose more than max_error.
    wider: the format that a matrix becomes which is beyond this range (quant/range.py).

    What packing decides by it:
    stored_types: types of safetensors and GGUF files that it holds without a loss.
    nearest_types: types that lose least in it, or nothing, at about as many bits.
    kept_by_auto: whether `--quant auto` keeps matrices that are stored so.
    models: the size of model that `--quant auto` packs as this.
    finer_head: whether embedding and head become a finer format; heads: the size of model where they become this.
    exact_variant: the format that takes its place where a matrix is stored so, which is then kept to the bit.
    weighed: whether errors are weighed by what is known of a matrix's inputs.
    narrow: the format that narrow leaves take, which are stored row by row; None: this one, which must be able to.
    for_routers: whether routers and nodes may stay in it: a wrong choice costs more than their few bytes.
    coarse: what a coarse copy of a head lacks that is kept in it, norms of rows' residuals by those of the rows; None
    where it makes no such copies.
    """

    name: str
    id: int
    max_error: float
    most: float
    least: float = 0.0
    wider: str = "f32"
    stored_types: tuple[str, ...] = ()
    nearest_types: tuple[str, ...] = ()
    kept_by_auto: bool = False
    models: ModelSize | None = None
    finer_head: bool = False
    heads: ModelSize | None = None
    exact_variant: str | None = None
    weighed: bool = False
    narrow: str | None = None
    for_routers: bool = False
    coarse: float | None = None

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Bytes of 16 rows × 32 columns."""

    @property
    @abstractmethod
    def head_bytes(self) -> int:
        """Bytes of a row block that lie ahead of its blocks."""

    @property
    @abstractmethod
    def row(self) -> RowLayout | None:
        """The layout row by row; None: there is none."""

    @property
    @abstractmethod
    def activation(self) -> Literal["q8", "f32"]:
        """What its kernel multiplies with: int8 groups of 32, or float32."""

    @property
    def grouped(self) -> bool:
        """Whether it has integer codes, and a scale for each group of columns."""
        return self.activation == "q8"

    @property
    def bits(self) -> float:
        """Bits a weight, scales included; heads, which grow with the rows alone, are not."""
        return self.block_bytes * 8 / (ROWS * GROUP)

    def row_block_bytes(self, columns: int) -> int:
        """Bytes of 16 rows."""
        return self.head_bytes + -(-columns // GROUP) * self.block_bytes
