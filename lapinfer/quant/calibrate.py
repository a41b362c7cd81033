"""What the inputs of a matrix say about its quantization: importance of columns, and error feedback (GPTQ)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import GROUP, MINIMUM_STEP, Grouped
from lapinfer.quant.search import check_finite, nearest_q4, rounded_to_units, row_units, search_q4

ROWS_AT_ONCE = 512
ROOM = np.float32(1.1)
"""Errors that are made good later widen a group's range: its unit leaves so much room."""


def guess_importance(
    qkv: np.ndarray, attn_norm: np.ndarray, n_heads: int, n_kv_heads: int, v_dim: int
) -> dict[str, np.ndarray]:
    """Importance [C] of the columns of a layer's qkv and o, from its weights alone.

    A normed vector times the norm's weights n feeds qkv: E x_j² ∝ n_j². The value rows feed o: E x_j² ∝ |v_j · n|².
    The same guesses for gate_up and down made these worse. Second moments of random tokens are far better.
    """
    values = qkv[len(qkv) - n_kv_heads * v_dim :]
    strength = np.einsum("rc,rc,c->r", values, values, attn_norm * attn_norm).reshape(n_kv_heads, v_dim)
    return {"qkv": attn_norm * attn_norm, "o": np.repeat(strength, n_heads // n_kv_heads, axis=0).reshape(-1)}


def quantize_with_feedback(weights: np.ndarray, upper: np.ndarray, threads: int = 2) -> Grouped:
    """q4 groups of float32 [R, C] that keep the outputs: each column's error is made good by the columns after it.

    upper: feedback_factors [C, C] of the matrix's inputs. Source: GPTQ (Frantar et al. 2022), with scale and minimum
    of a group searched when its turn comes, in a unit that fits the row's weights as they came. Extra memory is about
    20 MB a thread.
    """
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
        own_unit = unit[rows] = ROOM * _units(weights[rows])
        for g in range(G):
            columns = slice(g * GROUP, min((g + 1) * GROUP, C))
            block, own = left[columns], upper[columns, columns]
            weigh = np.repeat((1 / np.diag(own) ** 2)[:, None], block.shape[1], axis=1)
            _, s, m = rounded_to_units(block, weigh, *search_q4(block, weigh, below_zero=True), own_unit)
            scale[rows, g], minimum[rows, g] = s, m
            s, m = s * own_unit, m * (own_unit * np.float32(-MINIMUM_STEP))
            errors = np.empty_like(block)
            for i in range(len(block)):
                q = nearest_q4(block[i], s, m)
                codes[rows, columns.start + i] = q
                errors[i] = (block[i] - (q * s + m)) / own[i, i]
                block[i + 1 :] -= own[i, i + 1 :, None] * errors[i]
            left[columns.stop :] -= upper[columns, columns.stop :].T @ errors

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, R, ROWS_AT_ONCE)))
    return Grouped("q4", codes, scale, minimum, unit)


def _units(weights: np.ndarray) -> np.ndarray:
    """Units [R] that fit the plain ranges of the rows' groups."""
    R, C = weights.shape
    groups = np.pad(weights, ((0, 0), (0, -C % GROUP)), "edge").reshape(R, -1, GROUP)
    low = np.minimum(groups.min(axis=2), 0)
    return row_units((groups.max(axis=2) - low) / np.float32(15), low)


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
