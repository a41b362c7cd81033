"""Register tiles: tuples of f32x16, one per token or row of weights or queries, and what is done with all of them."""

# pyright: reportUnknownMemberType=false, reportAttributeAccessIssue=false, reportArgumentType=false
from __future__ import annotations

from numba.core import cgutils, types

from lapinfer.kernels.codegen import (
    FLOAT,
    I64,
    const,
    f32x16,
    intrinsic,
    load_splat,
    multiply_add,
    named,
    pointer,
)


def _zero_tile(count: int):
    tile = types.UniTuple(f32x16, count)

    def typer(typingctx):
        return tile(), lambda context, b, sig, a: cgutils.pack_array(b, [const(f32x16.llvm, 0.0)] * count)

    return typer


tile_of_1, tile_of_2, tile_of_4, tile_of_6, tile_of_8, tile_of_12, tile_of_16 = (
    named(f"tile_of_{n}", _zero_tile(n)) for n in (1, 2, 4, 6, 8, 12, 16)
)


@intrinsic
def tile_fma(typingctx, tile, vectors, address, stride):
    """tile[v·n + i] += vectors[v] · (the float32 at address + i·stride), for every vector; n rows = tile / vectors."""

    def generate(context, b, sig, args):
        tile, vectors, address, stride = args
        rows, columns = cgutils.unpack_tuple(b, tile), cgutils.unpack_tuple(b, vectors)
        n = len(rows) // len(columns)
        scalars = _scalars(b, address, stride, n)
        out = [multiply_add(b, columns[i // n], scalars[i % n], row) for i, row in enumerate(rows)]
        return cgutils.pack_array(b, out)

    return tile(tile, vectors, types.int64, types.int64), generate


def _scalars(b, address, stride, count: int):
    """The float32 at address + i·stride, each in all lanes."""
    return [load_splat(b, b.add(address, b.mul(stride, I64(i))), FLOAT, 16) for i in range(count)]


@intrinsic
def tile_fma_by_halves(typingctx, tile, vectors, first, second, stride):
    """The same with the numbers at `first` for the first half of the vectors, and those at `second` for the others."""

    def generate(context, b, sig, args):
        tile, vectors, first, second, stride = args
        rows, columns = cgutils.unpack_tuple(b, tile), cgutils.unpack_tuple(b, vectors)
        n = len(rows) // len(columns)
        scalars = [_scalars(b, address, stride, n) for address in (first, second)]
        out = [multiply_add(b, columns[i // n], scalars[2 * i // len(rows)][i % n], row) for i, row in enumerate(rows)]
        return cgutils.pack_array(b, out)

    return tile(tile, vectors, types.int64, types.int64, types.int64), generate


@intrinsic
def tile_add_times(typingctx, tile, other, vectors):
    """tile[v·n + i] += other[v·n + i] · vectors[v]; n rows = tile / vectors."""

    def generate(context, b, sig, args):
        rows, others, columns = (cgutils.unpack_tuple(b, each) for each in args)
        n = len(rows) // len(columns)
        out = [multiply_add(b, others[i], columns[i // n], row) for i, row in enumerate(rows)]
        return cgutils.pack_array(b, out)

    return tile(tile, tile, vectors), generate


@intrinsic
def tile_store(typingctx, tile, address, stride):
    """Store tile[i] at address + i·stride."""

    def generate(context, b, sig, args):
        tile, address, stride = args
        for i, row in enumerate(cgutils.unpack_tuple(b, tile)):
            b.store(row, pointer(b, b.add(address, b.mul(stride, I64(i))), f32x16.llvm), align=1)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), generate


def _tile_store_by(rows: int):
    def typer(typingctx, tile, address, stride):
        def generate(context, b, sig, args):
            tile, address, stride = args
            for k, row in enumerate(cgutils.unpack_tuple(b, tile)):
                where = b.add(address, b.mul(stride, I64(k % rows)))
                b.store(row, pointer(b, where, f32x16.llvm, 64 * (k // rows)), align=1)
            return context.get_dummy_value()

        return types.void(tile, types.int64, types.int64), generate

    return typer


# Store tile[n·v + i] at address + i·stride + 64·v: n rows of neighbouring vectors.
tile_store_by_2, tile_store_by_3, tile_store_by_4 = (named(f"tile_store_by_{n}", _tile_store_by(n)) for n in (2, 3, 4))
