"""The inner products of packed matrices: blocks of 16 rows × 32 columns times one group of activations.

tokens(acc, weights, x, token): acc[t] + W · x[token + t] for each of acc's tokens; `weights` is the address of a
block (layouts: lapinfer/quant), `x` of the activation tile's group (layout: operands.py).
rows(acc, weights, x, token): acc[r] + W_r · x[token] for acc's row blocks, whose blocks lie side by side.
Sums are in float32, group after group: the order never depends on the number of tokens or rows.
"""

from numba.core import cgutils, types

from lapinfer.kernels.codegen import FLOAT, I32, I64, const, f32x16, i8x64, i32x16, load_splat, multiply_add, named
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
    """An intrinsic (acc, weights, x, token) -> acc, of code that takes and returns lists of vectors."""

    def typer(typingctx, acc, weights, x, token):
        def code(context, b, sig, args):
            tile, weights, x, token = args
            sums = generate(context, b, list(cgutils.unpack_tuple(b, tile)), weights, x, token)
            return cgutils.pack_array(b, sums)

        i64 = types.int64
        return acc(acc, i64, i64, i64), code

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
    """Code of `tokens` and `rows` for integer codes."""
    read = reader.block
    assert read is not None

    def tokens(context, b, totals, weights, x, token):
        block = read(context, b, weights)
        columns = (_Activations(b, x, b.add(token, I64(t)), planes, format.signed) for t in range(len(totals)))
        return [_multiply(context, b, total, block, one) for total, one in zip(totals, columns, strict=True)]

    def rows(context, b, totals, weights, x, token):
        one = _Activations(b, x, token, planes, format.signed)
        blocks = (read(context, b, b.add(weights, I64(format.block_bytes * r))) for r in range(len(totals)))
        return [_multiply(context, b, total, block, one) for total, block in zip(totals, blocks, strict=True)]

    return tokens, rows


def _floats(format: Format, reader: Reader):
    """The same for floats, whose columns are read as 16 rows each."""
    read, column_bytes = reader.column, format.block_bytes // GROUP
    assert read is not None

    def tokens(context, b, totals, weights, x, token):
        first = b.add(x, b.mul(token, I64(4)))
        for column in range(GROUP):
            w = read(context, b, b.add(weights, I64(column_bytes * column)))
            for t in range(len(totals)):
                scalar = load_splat(b, first, FLOAT, 16, 4 * (TILE * column + t))
                totals[t] = multiply_add(b, w, scalar, totals[t])
        return totals

    def rows(context, b, totals, weights, x, token):
        first = b.add(x, b.mul(token, I64(4)))
        for column in range(GROUP):
            scalar = load_splat(b, first, FLOAT, 16, 4 * TILE * column)
            for r in range(len(totals)):
                w = read(context, b, b.add(weights, I64(format.block_bytes * r + column_bytes * column)))
                totals[r] = multiply_add(b, w, scalar, totals[r])
        return totals

    return tokens, rows


def _packed(format: Format, activations: str) -> Constant:
    """What kernels over packed blocks are stamped with."""
    reader = READERS[format.name]
    if isinstance(format, GroupFormat):
        tokens, rows = _quantized(format, reader, planes=2 if activations == "q16" else 1)
    else:
        tokens, rows = _floats(format, reader)
    name = f"{format.name}_{activations}"
    return Constant(
        "packed", format.name, activations, tokens=_product(f"tokens_{name}", tokens),
        rows=_product(f"rows_{name}", rows), head_bytes=format.head_bytes, block_bytes=format.block_bytes,
        group_bytes=TILE_GROUP_BYTES[ACTIVATION_KINDS.index(activations)],
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
