"""The inner products of packed matrices: blocks of 16 rows × 32 columns times one group of activations.

add(weights, x, count, y, stride): y[t] += W · x[t] for `count` tokens of a tile, of which a tile holds TILE. `weights`
is the address of a block (layouts: lapinfer/quant), `x` of the activation tile's group (layout: operands.py), and y[t],
16 float32, lies `stride` bytes after y[t − 1]. The block is decoded once, and nothing is done for absent tokens.
Sums are in float32, group after group: the order never depends on the number of tokens.
"""

from numba.core import cgutils, types

from lapinfer.kernels.codegen import (
    FLOAT,
    I32,
    I64,
    const,
    f32x16,
    i8x64,
    i32x16,
    load_splat,
    multiply_add,
    named,
    pointer,
)
from lapinfer.kernels.dots import dot_signed, dot_small
from lapinfer.kernels.formats import READERS
from lapinfer.kernels.operands import ACTIVATION_KINDS, TILE, TILE_GROUP_BYTES
from lapinfer.kernels.reader import Block, Reader
from lapinfer.kernels.stamp import Constant
from lapinfer.quant import GROUP
from lapinfer.quant.format import Format
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import GroupFormat


def _product(name: str, generate):
    """An intrinsic (weights, x, count, y, stride) of code that generates it."""

    def typer(typingctx, weights, x, count, y, stride):
        def code(context, b, sig, args):
            weights, x, count, y, stride = args
            generate(context, b, weights, x, count, lambda t: pointer(b, b.add(y, b.mul(t, stride)), f32x16.llvm))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), code

    return named(name, typer)


class _Activations:
    """One token's group of 32 activations, of one (q8) or two (q16) int8 per number."""

    def __init__(self, b, x, token, planes: int, signed: bool):
        column, scalar = b.add(x, b.mul(token, I64(32))), b.add(x, b.mul(token, I64(4)))
        scales = 32 * TILE * planes  # where the scalars of a group begin
        self.codes = [
            [b.bitcast(load_splat(b, column, I32, 16, 32 * TILE * p + 4 * k), i8x64.llvm) for k in range(8)]
            for p in range(planes)
        ]
        self.bias = [
            load_splat(b, scalar, I32, 16, scales + (8 + 4 * p) * TILE) if signed else None for p in range(planes)
        ]
        self.scale = load_splat(b, scalar, FLOAT, 16, scales)
        self.sum = load_splat(b, scalar, FLOAT, 16, scales + 4 * TILE)


def _multiply(context, b, total, block: Block, x: _Activations):
    """total + weights · x of one block and one token."""
    dots = [
        dot_small(context, b, block.codes, plane) if bias is None else dot_signed(context, b, block.codes, plane, bias)
        for plane, bias in zip(x.codes, x.bias, strict=True)
    ]
    dot = dots[0]
    if len(dots) == 2:  # below 2^28, so exact in 32 bits
        dot = b.add(b.mul(dots[0], const(i32x16.llvm, 255)), dots[1])
    total = multiply_add(b, b.sitofp(dot, f32x16.llvm), b.fmul(block.scale, x.scale), total)
    return total if block.minimum is None else multiply_add(b, block.minimum, x.sum, total)


def _quantized(format: GroupFormat, reader: Reader, planes: int):
    """Code of `add` for integer codes, which stay in registers from token to token."""
    read = reader.block
    assert read is not None

    def add(context, b, weights, x, count, place):
        def token(block, t):
            one = _Activations(b, x, t, planes, format.signed)
            b.store(_multiply(context, b, b.load(place(t), align=1), block, one), place(t), align=1)

        with b.if_else(b.icmp_signed("==", count, I64(1))) as (one, several):
            with one:  # apart, since codes that are used once need no register each
                token(read(context, b, weights), I64(0))
            with several:
                block = read(context, b, weights)
                with cgutils.for_range(b, count) as loop:
                    token(block, loop.index)

    return add


def _floats(format: Format, reader: Reader):
    """The same for floats, whose columns are read as 16 rows each."""
    read, column_bytes = reader.column, format.block_bytes // GROUP
    assert read is not None

    def add(context, b, weights, x, count, place):
        def tokens(first, together):
            each = [b.add(first, I64(t)) for t in range(together)]
            totals = [b.load(place(t), align=1) for t in each]
            x_first = b.add(x, b.mul(first, I64(4)))
            for column in range(GROUP):
                w = read(context, b, b.add(weights, I64(column_bytes * column)))
                for t in range(together):
                    scalar = load_splat(b, x_first, FLOAT, 16, 4 * (TILE * column + t))
                    totals[t] = multiply_add(b, w, scalar, totals[t])
            for t, total in zip(each, totals, strict=True):
                b.store(total, place(t), align=1)

        done = I64(0)
        for together in (8, 4, 1):
            left = b.sub(count, done)
            with cgutils.for_range(b, b.sdiv(left, I64(together))) as loop:
                tokens(b.add(done, b.mul(loop.index, I64(together))), together)
            done = b.sub(count, b.srem(left, I64(together)))

    return add


def _packed(format: Format, activations: str) -> Constant:
    """What kernels over packed blocks are stamped with."""
    reader = READERS[format.name]
    if isinstance(format, GroupFormat):
        add = _quantized(format, reader, planes=2 if activations == "q16" else 1)
    else:
        add = _floats(format, reader)
    name = f"{format.name}_{activations}"
    return Constant(
        "packed", format.name, activations, add=_product(f"add_{name}", add), head_bytes=format.head_bytes,
        block_bytes=format.block_bytes, group_bytes=TILE_GROUP_BYTES[ACTIVATION_KINDS.index(activations)],
    )  # fmt: skip


PACKED = tuple(
    _packed(format, activations)
    for format in FORMATS.values()
    for activations in (("q8", "q16") if format.grouped else ("f32",))
)
"""Every format with every kind of activations that it is multiplied with."""


def _columns(format: Format) -> Constant:
    """What kernels that read single columns of floats are stamped with."""
    read = READERS[format.name].column
    assert read is not None

    def typer(typingctx, address):
        return f32x16(types.int64), lambda context, b, sig, args: read(context, b, args[0])

    size = format.block_bytes // GROUP
    return Constant("columns", format.name, "f32", column=named(f"column_{format.name}", typer), column_bytes=size)


COLUMNS = tuple(_columns(format) for format in FORMATS.values() if not format.grouped)
"""Formats of floats."""

ELEMENTS = tuple(
    Constant("element", format.name, element=READERS[format.name].element, head_bytes=format.head_bytes,
             block_bytes=format.block_bytes)
    for format in FORMATS.values()
)  # fmt: skip
"""Every format, read weight by weight."""
