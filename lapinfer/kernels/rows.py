"""Products with matrices that are packed row by row (layouts: lapinfer/quant/rows.py): nodes, and neurons of leaves.

dot(acc, w, stride, x): acc += rows · tokens of one group of 32 columns; x are the addresses of the group in the rows
of N tokens, plain float32, w that of the group in the first of R rows. acc has two vectors, of 16 columns each, for
row 0 and each token, then for row 1, …: R is what its length says.
add(acc, w, h): acc += h[n] · one row's group, two vectors for each of N numbers.

Both work on float32 whatever the weights: a node's sign decides what is read, and a leaf of a few neurons is no work
for integers. Sums run over the columns, or neurons, in order: they do not depend on R or N.
"""

from numba.core import cgutils, types

from lapinfer.kernels.codegen import I64, f32x16, load, multiply_add, named, splat
from lapinfer.kernels.formats import READERS
from lapinfer.kernels.stamp import Constant
from lapinfer.quant.format import Format
from lapinfer.quant.formats import FORMATS


def _dot(read):
    def typer(typingctx, acc, w, stride, x):
        def code(context, b, sig, args):
            acc, w, stride, x = args
            totals, tokens = list(cgutils.unpack_tuple(b, acc)), cgutils.unpack_tuple(b, x)
            columns = [[load(b, token, f32x16.llvm, 64 * k) for k in range(2)] for token in tokens]
            for r in range(len(totals) // (2 * len(tokens))):
                row = read(context, b, b.add(w, b.mul(stride, I64(r))))
                for n, column in enumerate(columns):
                    for k in range(2):
                        i = 2 * (r * len(tokens) + n) + k
                        totals[i] = multiply_add(b, row[k], column[k], totals[i])
            return cgutils.pack_array(b, totals)

        return acc(acc, types.int64, types.int64, x), code

    return typer


def _add(read):
    def typer(typingctx, acc, w, h):
        def code(context, b, sig, args):
            acc, w, h = args
            totals, row = list(cgutils.unpack_tuple(b, acc)), read(context, b, w)
            for n, value in enumerate(cgutils.unpack_tuple(b, h)):
                for k in range(2):
                    totals[2 * n + k] = multiply_add(b, row[k], splat(b, value, 16), totals[2 * n + k])
            return cgutils.pack_array(b, totals)

        return acc(acc, types.int64, h), code

    return typer


def _by_rows(format: Format) -> Constant:
    """What kernels over rows are stamped with."""
    read = READERS[format.name].group
    assert read is not None
    assert format.row is not None
    return Constant(
        "rows", format.name, id=format.id, dot=named(f"dot_{format.name}", _dot(read)),
        add=named(f"add_{format.name}", _add(read)), head_bytes=format.row.head_bytes,
        group_bytes=format.row.group_bytes,
    )  # fmt: skip


ROWS = tuple(_by_rows(format) for format in FORMATS.values() if format.row is not None)
"""Formats that are stored row by row as well."""

NODES = tuple(W for W in ROWS if not FORMATS[W.format].grouped)
"""Those that a tree's nodes may have: a sign that rounding turned would send tokens elsewhere."""
