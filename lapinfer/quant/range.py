"""Whether a format holds a matrix: its scales and numbers end somewhere, above and below."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant.format import Format

SLACK = 3.0
"""A row may lose so many times what its format loses of numbers that its scales hold."""
UNTRAINED = 1e-3
"""A token's row below this part of the largest was never trained."""


class RangeError(CheckpointError):
    """A row of a matrix is too large or too small for the format."""


def largest(weights: np.ndarray) -> np.ndarray:
    """The largest magnitude [R] of each row."""
    return np.maximum(weights.max(axis=1, initial=0), -weights.min(axis=1, initial=0))


def check_large(form: Format, weights: np.ndarray, first: int = 0) -> None:
    """RangeError that names the first row of finite float32 [R, C] beyond the format. first: the number of row 0."""
    top = largest(weights)
    if (top > form.most).any():
        row = int((top > form.most).argmax())
        raise RangeError(f"row {first + row} has weights of {top[row]:.1e}, too large for {form.name}")


def check_small(
    form: Format, weights: np.ndarray, restored: Callable[[], np.ndarray], *, by_token: bool = False
) -> None:
    """RangeError that names the first row [R, C] of which the format keeps less than it promises (Format.max_error).

    restored: float32 [R, C] that it means; only asked for where there are rows as small. by_token: rows are tokens;
    those that were never trained count for nothing.
    """
    top = largest(weights)
    unused = top.max(initial=0) * UNTRAINED if by_token else 0
    suspects = np.flatnonzero((top > unused) & (top < form.least))
    if not len(suspects):
        return
    error = np.abs(weights[suspects] - restored()[suspects]).max(axis=1)
    lossy = error > SLACK * form.max_error * top[suspects]
    if lossy.any():
        row = int(suspects[lossy.argmax()])
        raise RangeError(f"row {row} has no weight above {top[row]:.1e}, too small for {form.name}")
