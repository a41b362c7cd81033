"""Quantization: codes, scales and minima of groups of 32 columns with the least (weighted) squared error.

Everything inside works on columns first, [32, N groups]: sums over a group are then sums of long rows, which NumPy
does at full speed, and a slice of groups stays in the processor's second-level cache.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import GROUP, Grouped

SLICE = 4096
"""Groups searched at once: 0.5 MB an array."""

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)

Q8_SHRINKS = (1.0, 0.997, 0.994, 0.991)
Q4_RANGES = tuple(
    (low, high)
    for low in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    for high in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    if abs(low - high) < 0.2
)
"""Candidate ranges of a group: parts of max − min cut off below and above."""
Q4_ROUNDS = 4
"""Rounds of alternating least squares: best scale and minimum for the codes, best codes for these."""


def check_finite(weights: np.ndarray) -> None:
    """Raises CheckpointError that names the first row with a NaN or infinite weight."""
    # A row's sum of squares could overflow where its weights are finite, so only suspects are looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(np.einsum("rc,rc->r", weights, weights)))
    for row in suspects:
        if not np.isfinite(weights[row]).all():
            raise CheckpointError(f"row {row} has NaN or infinite weights, expected finite numbers")


def quantize(format: str, weights: np.ndarray, importance: np.ndarray | None = None, threads: int = 2) -> Grouped:
    """float32 [R, C] as q8 or q4 groups; importance [C] (≥ 0) weighs the squared error of a column.

    Missing columns of the last group weigh nothing. The result does not depend on `threads`. Extra memory is about
    2 bytes a weight (the result) + 10 MB a thread. Raises CheckpointError for weights that are not finite, or
    whose scale or minimum would not fit float16.
    """
    check_finite(weights)
    R, C = weights.shape
    G = -(-C // GROUP)
    weigh = np.zeros(G * GROUP, np.float32)
    weigh[:C] = 1 if importance is None else _usable(importance)
    # A group whose importance is all zero is still quantized well.
    weigh = weigh.reshape(G, GROUP)
    weigh[(weigh == 0).all(axis=1)] = 1
    uniform = importance is None and C == G * GROUP
    codes = np.empty((R, G * GROUP), np.int8 if format == "q8" else np.uint8)
    scale = np.empty((R, G), np.float16)
    minimum = np.empty((R, G), np.float16) if format == "q4" else None

    def work(start: int) -> None:
        rows = np.asarray(weights[start : start + step], np.float32)
        n = len(rows)
        # Missing columns repeat the row's last one, which widens no range.
        rows = rows if C == G * GROUP else np.pad(rows, ((0, 0), (0, G * GROUP - C)), "edge")
        if np.abs(rows).max(initial=0) > HALF_MAX:
            raise CheckpointError(
                f"row {start + int(np.abs(rows).max(axis=1).argmax())} has weights beyond ±{HALF_MAX:.0f}, "
                f"expected what a float16 scale can hold; use f32 or bf16"
            )
        groups = np.ascontiguousarray(rows.reshape(n * G, GROUP).T)
        w = None if uniform else np.ascontiguousarray(np.broadcast_to(weigh, (n, G, GROUP)).reshape(n * G, GROUP).T)
        if minimum is None:
            c, s = search_q8(groups, w)
        else:
            c, s, m = search_q4(groups, w)
            minimum[start : start + n] = m.reshape(n, G)
        codes[start : start + n] = c.T.reshape(n, G * GROUP)
        scale[start : start + n] = s.reshape(n, G)

    step = max(1, SLICE // G)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, R, step)))
    return Grouped("q8" if format == "q8" else "q4", codes[:, :C], scale, minimum)


def _usable(importance: np.ndarray) -> np.ndarray:
    """float32 with mean 1, so that no sum overflows; what is not a positive finite number counts as zero."""
    values = np.where(np.isfinite(importance) & (importance > 0), importance, 0).astype(np.float64)
    return (values / (values.mean() or 1.0)).astype(np.float32)


def search_q8(x: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [32, N] and scales float16 [N] of groups x [32, N] with weights w [32, N] (None: all equal)."""
    top = np.abs(x).max(axis=0) / np.float32(127)
    best_error = np.full(x.shape[1], np.inf, np.float32)
    best = np.zeros(x.shape[1], np.float16)
    for shrink in Q8_SHRINKS:
        scale = _half(top * np.float32(shrink))
        error = x - _q8_codes(x, scale) * scale.astype(np.float32)
        error = _dot(error, error, w)
        better = error < best_error
        best_error[better], best[better] = error[better], scale[better]
    return _q8_codes(x, best).astype(np.int8), best


def _q8_codes(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    codes = x * _inverse(scale.astype(np.float32))
    np.rint(codes, out=codes)
    return np.clip(codes, -127, 127, out=codes)


def search_q4(
    x: np.ndarray, w: np.ndarray | None, rounds: int = Q4_ROUNDS, ranges: tuple[tuple[float, float], ...] = Q4_RANGES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 [32, N], scales and minima float16 [N] of groups x [32, N] with weights w [32, N].

    Each candidate range gives codes, the codes give the exact least-squares scale and minimum, and these give the
    error; the best is improved by alternation. At last the scale and minimum are rounded to float16 and the codes
    chosen again for the rounded pair, which must beat the rounded min–max pair or gives way to it.
    """
    total = np.float32(GROUP) if w is None else w.sum(axis=0)
    low, high = x.min(axis=0), x.max(axis=0)
    # Centred values: sums of products then lose no digits to a common offset.
    centre = (x.sum(axis=0) if w is None else (w * x).sum(axis=0)) / total
    y = x - centre
    low -= centre
    span = high - centre - low
    unit = span / np.float32(15)
    best_gain = np.full(x.shape[1], -1, np.float32)
    best_scale, best_minimum = unit.copy(), low.copy()
    for cut_low, cut_high in ranges:
        scale, minimum = unit * np.float32(1 - cut_low - cut_high), low + span * np.float32(cut_low)
        _improve(y, w, total, scale, minimum, best_gain, best_scale, best_minimum)
    for _ in range(rounds):
        _improve(y, w, total, best_scale.copy(), best_minimum.copy(), best_gain, best_scale, best_minimum)
    return _rounded(x, w, ((best_scale, best_minimum + centre), (unit, low + centre)))


def _improve(y, w, total, scale, minimum, best_gain, best_scale, best_minimum) -> None:
    """Replaces the best scale and minimum of the groups where the codes of (scale, minimum) allow a smaller error.

    With centred y and q − mean(q), the least squares scale is Σwqy / Σwqq, and it explains (Σwqy)² / Σwqq of Σwyy.
    """
    q = nearest_q4(y, scale, minimum)
    wq = q if w is None else w * q
    mean = wq.sum(axis=0) / total
    qy = np.einsum("cn,cn->n", wq, y)
    qq = np.einsum("cn,cn->n", wq, q) - total * mean * mean
    fitted = qy * _inverse(qq)
    gain = fitted * qy
    better = (gain > best_gain) & (fitted > 0)
    np.copyto(best_gain, gain, where=better)
    np.copyto(best_scale, fitted, where=better)
    np.copyto(best_minimum, -fitted * mean, where=better)


def nearest_q4(x: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    codes = x - minimum
    codes *= _inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, 0, 15, out=codes)


def _rounded(x, w, pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best of (scale, minimum) pairs after rounding to float16, its codes chosen for the rounded numbers."""
    N = x.shape[1]
    best_error = np.full(N, np.inf, np.float32)
    best_scale, best_minimum = np.zeros(N, np.float16), np.zeros(N, np.float16)
    for scale, minimum in pairs:
        scale, minimum = _half(scale), minimum.astype(np.float16)
        s, m = scale.astype(np.float32), minimum.astype(np.float32)
        error = x - (nearest_q4(x, s, m) * s + m)
        error = _dot(error, error, w)
        better = error < best_error
        np.copyto(best_error, error, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_minimum, minimum, where=better)
    codes = nearest_q4(x, best_scale.astype(np.float32), best_minimum.astype(np.float32))
    return codes.astype(np.uint8), best_scale, best_minimum


def _dot(a: np.ndarray, b: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    return np.einsum("cn,cn->n", a, b) if w is None else np.einsum("cn,cn,cn->n", a, b, w)


def _half(scale: np.ndarray) -> np.ndarray:
    """float16 scales; a tiny positive one stays positive."""
    return np.where(scale > 0, np.maximum(scale, np.float32(HALF_TINY)), 0).astype(np.float16)


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, and 0 where a value is 0 or so small that the inverse would be infinite."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > 1e-37)
