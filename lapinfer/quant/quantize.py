"""From numbers to groups of a quantized format, slice by slice in several threads."""

from __future__ import annotations

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.parallel import in_threads
from lapinfer.quant import GROUP
from lapinfer.quant.formats import group_format
from lapinfer.quant.groups import Grouped, joined
from lapinfer.quant.range import check_large

SLICE = 4096
"""Groups searched at once: 0.5 MB an array."""


def check_finite(weights: np.ndarray) -> None:
    """Raises CheckpointError that names the first row with a NaN or infinite weight."""
    # A row's sum of squares could overflow where its weights are finite, so only suspects are looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(np.einsum("rc,rc->r", weights, weights)))
    for row in suspects:
        if not np.isfinite(weights[row]).all():
            raise CheckpointError(f"row {row} has NaN or infinite weights, expected finite numbers")


def quantize(name: str, weights: np.ndarray, importance: np.ndarray | None = None, threads: int = 2) -> Grouped:
    """float32 [R, C] as groups of a quantized format; importance [C] (≥ 0) weighs the squared error of a column.

    Missing columns of the last group weigh nothing. The result does not depend on `threads`. Extra memory is about
    2 bytes per weight (the result) + 10 MB per thread. Raises CheckpointError for weights that are not finite, or
    too large for the format.
    """
    form = group_format(name)
    check_finite(weights)
    R, C = weights.shape
    G = -(-C // GROUP)
    weigh = np.zeros(G * GROUP, np.float32)
    weigh[:C] = 1 if importance is None else _usable(importance)
    # A group whose importance is all zero is still quantized well.
    weigh = weigh.reshape(G, GROUP)
    weigh[(weigh == 0).all(axis=1)] = 1
    uniform = importance is None and C == G * GROUP

    def work(start: int) -> Grouped:
        rows = np.asarray(weights[start : start + step], np.float32)
        n = len(rows)
        # Missing columns repeat the row's last one, which widens no range.
        rows = rows if C == G * GROUP else np.pad(rows, ((0, 0), (0, G * GROUP - C)), "edge")
        check_large(form, rows, start)
        groups = np.ascontiguousarray(rows.reshape(n * G, GROUP).T)
        w = None if uniform else np.ascontiguousarray(np.broadcast_to(weigh, (n, G, GROUP)).reshape(n * G, GROUP).T)
        result = form.search(groups, w, n)
        minimum = None if result.minimum is None else result.minimum.reshape(n, G)
        codes = result.codes.T.reshape(n, G * GROUP)[:, :C]
        return Grouped(form, codes, result.scale.reshape(n, G), minimum, result.unit)

    step = max(1, SLICE // G)
    return joined(in_threads(work, range(0, R, step), threads))


def _usable(importance: np.ndarray) -> np.ndarray:
    """float32 with mean 1, so that no sum overflows; what is not a positive finite number counts as zero."""
    values = np.where(np.isfinite(importance) & (importance > 0), importance, 0).astype(np.float64)
    return (values / (values.mean() or 1.0)).astype(np.float32)
