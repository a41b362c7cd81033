"""What the inputs of a matrix say about its quantization: error feedback (GPTQ)."""

from __future__ import annotations

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.parallel import in_threads
from lapinfer.quant import GROUP
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import FeedbackFormat, Grouped
from lapinfer.quant.quantize import check_finite
from lapinfer.quant.search import nearest_nibbles

ROWS_AT_ONCE = 512
ROOM = np.float32(1.1)
"""Errors that are made good later widen a group's range: its unit leaves so much room."""


def quantize_with_feedback(name: str, weights: np.ndarray, upper: np.ndarray, threads: int = 2) -> Grouped:
    """Groups of a FeedbackFormat of float32 [R, C] that keep the outputs: later columns make good a column's error.

    upper: feedback_factors [C, C] of the matrix's inputs. Source: GPTQ (Frantar et al. 2022), with scale and minimum
    of a group searched when its turn comes, in a unit that fits the row's weights as they came. Extra memory is about
    20 MB per thread.
    """
    form = FORMATS[name]
    if not isinstance(form, FeedbackFormat):
        raise ValueError(f"{name} has no error feedback")
    check_finite(weights)
    R, C = weights.shape
    if upper.shape != (C, C):
        raise ValueError(f"factors are {upper.shape}, expected {(C, C)}")
    G = -(-C // GROUP)
    codes = np.empty((R, C), np.uint8)
    scale, minimum, unit = np.empty((R, G), np.uint8), np.empty((R, G), np.uint8), np.empty(R, np.float32)

    def work(start: int) -> None:
        rows = slice(start, start + ROWS_AT_ONCE)
        left = np.ascontiguousarray(weights[rows].T, dtype=np.float32)
        unit[rows] = ROOM * form.plain_units(weights[rows])
        for g in range(G):
            columns = slice(g * GROUP, min((g + 1) * GROUP, C))
            block, own = left[columns], upper[columns, columns]
            weigh = np.repeat((1 / np.diag(own) ** 2)[:, None], block.shape[1], axis=1)
            grid = form.grid(block, weigh, unit[rows])
            scale[rows, g], minimum[rows, g] = grid.scale, grid.minimum
            errors = np.empty_like(block)
            for i in range(len(block)):
                q = nearest_nibbles(block[i], grid.step, grid.offset)
                codes[rows, columns.start + i] = q
                errors[i] = (block[i] - (q * grid.step + grid.offset)) / own[i, i]
                block[i + 1 :] -= own[i, i + 1 :, None] * errors[i]
            left[columns.stop :] -= upper[columns, columns.stop :].T @ errors

    in_threads(work, range(0, R, ROWS_AT_ONCE), threads)
    return Grouped(form, codes, scale, minimum, unit)


def feedback_factors(covariance: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """Upper Cholesky factor of the inverse of the damped covariance, scaled to a mean diagonal of 1; float32 [C, C].

    covariance: X^T X [C, C] of a matrix's inputs, in any unit. Extra memory is about 16 C² bytes.
    """
    hessian = covariance.astype(np.float64)
    diagonal = np.diag(hessian).copy()
    mean = diagonal.mean()
    if not np.isfinite(hessian).all() or mean <= 0:
        raise CheckpointError("the calibration text gives a covariance that is not finite and positive")
    hessian /= mean
    hessian[np.diag_indices_from(hessian)] += damping
    try:
        return np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    except np.linalg.LinAlgError:
        raise CheckpointError("the calibration text gives a covariance that is not positive; use more text") from None
