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


def plane(b, address, first: int, bits: int, shift: int = 0):
    """The 1, 2 or 4 bits of a plane, moved up by `shift`, as eight i8x64; it begins `first` bytes after the address."""
    vector, pairs = i8x64.llvm, ir.VectorType(I16, 32)
    mask, codes = const(vector, ((1 << bits) - 1) << shift), []
    for line in range(bits):
        words = b.bitcast(load(b, address, vector, first + 64 * line), pairs)
        for right in range(-shift, 8 - shift, bits):
            amount = const(pairs, abs(right))
            moved = words if right == 0 else b.lshr(words, amount) if right > 0 else b.shl(words, amount)
            codes.append(b.and_(b.bitcast(moved, vector), mask))
    return codes


def nibbles(b, address, first: int):
    """The 4-bit codes of a block as eight i8x64; its four lines begin `first` bytes after the address."""
    return plane(b, address, first, 4)


@jit
def plane_code(lines, bits, row, column):
    """What a plane of 1, 2 or 4 bits whose lines begin at `lines` has of one code."""
    place = column // 4
    byte = load_u8(lines + 64 * (place * bits // 8) + 4 * row + column % 4)
    return byte >> place * bits % 8 & (1 << bits) - 1


@jit
def nibble(codes, row, column):
    """One 4-bit code of a block whose four lines begin at `codes`."""
    return plane_code(codes, 4, row, column)
