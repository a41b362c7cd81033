"""How kernels read a weight format: what each file of kernels/formats declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from lapinfer.kernels.cache import jit
from lapinfer.kernels.codegen import I8, I16, const, i8x64, i32x16, load
from lapinfer.kernels.conversions import half_to_float
from lapinfer.kernels.simd import load_u8

HALVES, BYTES, WIDE = ir.VectorType(I16, 16), ir.VectorType(I8, 16), i32x16.llvm


@dataclass(frozen=True, slots=True)
class Block:
    """A block of 16 rows × 32 columns of a quantized format, as code generation sees it.

    codes: eight i8x64, of four columns each (lane 4·r + j: row r); scale: f32x16, one per row; minimum: f32x16 or
    None. weight = scale · code + minimum.
    """

    codes: list[Any]
    scale: Any
    minimum: Any = None


@dataclass(frozen=True, slots=True)
class Reader:
    """How one format is read.

    Functions of code generation take Numba's target context, an IR builder and an int64 address:

    block: of a quantized format, a Block, without the factor that is in the row block's head.
    column: of a float format, 16 rows of one column of a block, f32x16.
    group: of a format that is also stored row by row, 32 columns of a row, two f32x16; without the row's head.

    element is jitted, (head, block, row, column) -> float32: one weight of a block; `head` is the address of its row
    block's head.
    """

    element: Callable
    block: Callable[..., Block] | None = None
    column: Callable[..., Any] | None = None
    group: Callable[..., list[Any]] | None = None


def halves(context, b, address, offset: int = 0):
    """16 float16 as f32x16."""
    return half_to_float(context, b, load(b, address, HALVES, offset))


def unsigned(b, address, offset: int = 0):
    """16 unsigned bytes as i32x16."""
    return b.zext(load(b, address, BYTES, offset), WIDE)


def nibbles(b, address, first: int):
    """The 4-bit codes of a block as eight i8x64; its four lines begin `first` bytes after the address."""
    fifteen, codes = const(i8x64.llvm, 15), []
    for line in range(4):
        pair = load(b, address, i8x64.llvm, first + 64 * line)
        words = b.bitcast(pair, ir.VectorType(I16, 32))
        high = b.bitcast(b.lshr(words, const(words.type, 4)), i8x64.llvm)
        codes += [b.and_(pair, fifteen), b.and_(high, fifteen)]
    return codes


@jit
def nibble(codes, row, column):
    """One 4-bit code of a block whose four lines begin at `codes`."""
    pair = load_u8(codes + 64 * (column // 8) + 4 * row + column % 4)
    return pair & 15 if column % 8 < 4 else pair >> 4
