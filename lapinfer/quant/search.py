"""Quantization: codes, scales and minima of groups of 32 columns with the least (weighted) squared error.

Everything inside works on columns first, [32, N groups]: sums over a group are then sums of long rows, which NumPy
does at full speed, and a slice of groups stays in the processor's second-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import FORMATS, GROUP, MINIMUM_STEP, MXFP4_LEAST, MXFP4_VALUES, Q6_ZERO, FormatName, Grouped

SLICE = 4096
"""Groups searched at once: 0.5 MB an array."""

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)

Q6_RANGES = (31.0, 31.5, 32.0, 33.0, 35.0, 38.0, 42.0, 47.0, 53.0)
"""Steps from 0 to a group's largest value; it is cut off where that makes more important ones more exact."""

MXFP4_MIDDLES = (MXFP4_VALUES[:7] + MXFP4_VALUES[1:8]) / 2
"""Between neighbouring magnitudes."""

Q8_SHRINKS = (1.0, 0.997, 0.994, 0.991)
Q4_RANGES = tuple(
    (low, high)
    for low in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    for high in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    if abs(low - high) < 0.2
)
"""Candidate ranges of a group: parts of max − min cut off below and above."""
NEAR = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Steps of (scale, minimum) around the nearest ones that are tried when both are rounded to bytes."""
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


def quantize(
    format: FormatName, weights: np.ndarray, importance: np.ndarray | None = None, threads: int = 2
) -> Grouped:
    """float32 [R, C] as groups of a quantized format; importance [C] (≥ 0) weighs the squared error of a column.

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

    def work(start: int) -> Grouped:
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
        minimum = unit = None
        if format == "q8":
            codes, scale = search_q8(groups, w)
        elif format == "mxfp4":
            codes, scale = search_mxfp4(groups, w)
        elif format == "q6":
            scale = search_q6(groups, w)
            unit = scale.reshape(n, G).max(axis=1, initial=0) / np.float32(255)
            codes, scale = q6_codes(groups, scale, np.repeat(unit, G))
        elif format == "q4_1":
            codes, scale, minimum = rounded_to_half(groups, w, *search_q4(groups, w))
        else:
            scale, minimum = search_q4(groups, w, below_zero=True)
            unit = row_units(scale.reshape(n, G), minimum.reshape(n, G))
            codes, scale, minimum = rounded_to_units(groups, w, scale, minimum, np.repeat(unit, G))
        minimum = None if minimum is None else minimum.reshape(n, G)
        return Grouped(format, codes.T.reshape(n, G * GROUP)[:, :C], scale.reshape(n, G), minimum, unit)

    assert FORMATS[format].grouped
    step = max(1, SLICE // G)
    with ThreadPoolExecutor(threads) as pool:
        return joined(list(pool.map(work, range(0, R, step))))


def joined(parts: Sequence[Grouped]) -> Grouped:
    """The rows of all parts, which have one format."""

    def rows(of: list[np.ndarray | None]) -> np.ndarray | None:
        there = [part for part in of if part is not None]
        return np.concatenate(there) if there else None

    return Grouped(
        parts[0].format,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        rows([part.minimum for part in parts]),
        rows([part.unit for part in parts]),
    )


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


def search_q6(x: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    """Scales [N], not yet rounded, of groups x [32, N]; codes are −32 … 31."""
    top = np.abs(x).max(axis=0)
    best, least = top / np.float32(31), np.full(x.shape[1], np.inf, np.float32)
    for steps in Q6_RANGES:
        scale = top / np.float32(steps)
        codes = np.clip(np.rint(x * _inverse(scale)), -Q6_ZERO, Q6_ZERO - 1)
        error = x - codes * scale
        error = _dot(error, error, w)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def q6_codes(x: np.ndarray, scale: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [32, N] and scales in units [N]."""
    whole = np.clip(np.rint(scale * _inverse(unit)), scale > 0, 255)
    codes = np.clip(np.rint(x * _inverse(whole * unit)), -Q6_ZERO, Q6_ZERO - 1) + Q6_ZERO
    return codes.astype(np.uint8), whole.astype(np.uint8)


def search_mxfp4(x: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [32, N] and exponents uint8 [N]: the power of two that just holds the largest, or half of it."""
    with np.errstate(divide="ignore"):
        whole = np.ceil(np.log2(np.abs(x).max(axis=0) / np.float32(6)))
    holds = np.clip(whole + 127, MXFP4_LEAST, 254).astype(np.int32)
    codes = scale = None
    least = np.full(x.shape[1], np.inf, np.float32)
    for exponent in (holds, np.maximum(holds - 1, MXFP4_LEAST)):
        unit = np.ldexp(np.float32(1), exponent - 127)
        found = np.searchsorted(MXFP4_MIDDLES, np.abs(x) / unit).astype(np.uint8) + np.uint8(8) * (x < 0)
        error = x - MXFP4_VALUES[found] * unit
        error = _dot(error, error, w)
        better = error < least
        least = np.where(better, error, least)
        codes = found if codes is None else np.where(better, found, codes)
        scale = exponent if scale is None else np.where(better, exponent, scale)
    assert codes is not None
    assert scale is not None
    return codes, scale.astype(np.uint8)


def search_q4(
    x: np.ndarray,
    w: np.ndarray | None,
    rounds: int = Q4_ROUNDS,
    ranges: tuple[tuple[float, float], ...] = Q4_RANGES,
    below_zero: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [N], not yet rounded, of groups x [32, N] with weights w [32, N]; codes are 0 … 15.

    Each candidate range gives codes, the codes give the exact least-squares scale and minimum, and these give the
    error; the best is improved by alternation. below_zero: the range of a group reaches down to zero at least, for
    formats that have no positive minimum.
    """
    total = np.float32(GROUP) if w is None else w.sum(axis=0)
    low, high = x.min(axis=0), x.max(axis=0)
    if below_zero:
        low = np.minimum(low, 0)
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
    return best_scale, best_minimum + centre


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


def rounded_to_half(
    x: np.ndarray, w: np.ndarray | None, scale: np.ndarray, minimum: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes for float16 scales and minima: those of the search, or the plain range where its rounding is better."""
    low = x.min(axis=0)
    plain = (x.max(axis=0) - low) / np.float32(15)
    pairs = [(_half(s), m.astype(np.float16)) for s, m in ((scale, minimum), (plain, low))]
    return _best(x, w, [(s, m, s.astype(np.float32), m.astype(np.float32)) for s, m in pairs])


def row_units(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Units float32 [R] in which the scales and minima [R, G] of each row fit a byte."""
    return np.maximum(scale, minimum / np.float32(-MINIMUM_STEP)).max(axis=1, initial=0) / np.float32(255)


def rounded_to_units(
    x: np.ndarray, w: np.ndarray | None, scale: np.ndarray, minimum: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, and scales and minima in units [N] of one byte each: of the nearest few, those with the least error."""
    inverse = _inverse(unit)
    s = np.clip(np.rint(scale * inverse), 0, 255)
    m = np.clip(np.rint(minimum * inverse / np.float32(-MINIMUM_STEP)), 0, 255)
    low = np.minimum(x.min(axis=0), 0)
    plain_s = np.clip(np.ceil((x.max(axis=0) - low) / np.float32(15) * inverse), 0, 255)
    plain_m = np.clip(np.rint(low * inverse / np.float32(-MINIMUM_STEP)), 0, 255)
    pairs = [(np.clip(s + a, 0, 255), np.clip(m + b, 0, 255)) for a, b in NEAR] + [(plain_s, plain_m)]
    return _best(
        x, w, [(s.astype(np.uint8), m.astype(np.uint8), s * unit, m * (unit * -MINIMUM_STEP)) for s, m in pairs]
    )


def _best(
    x: np.ndarray, w: np.ndarray | None, pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, stored scale and stored minimum of the pair with the least error: (stored, stored, value, value) [N]."""
    least = np.full(x.shape[1], np.inf, np.float32)
    stored_scale, stored_minimum, scale, minimum = (part.copy() for part in pairs[0])
    for candidate in pairs:
        s, m = candidate[2:]
        error = x - (nearest_q4(x, s, m) * s + m)
        error = _dot(error, error, w)
        better = error < least
        np.copyto(least, error, where=better)
        for best, own in zip((stored_scale, stored_minimum, scale, minimum), candidate, strict=True):
            np.copyto(best, own, where=better)
    return nearest_q4(x, scale, minimum).astype(np.uint8), stored_scale, stored_minimum


def _dot(a: np.ndarray, b: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    return np.einsum("cn,cn->n", a, b) if w is None else np.einsum("cn,cn,cn->n", a, b, w)


def _half(scale: np.ndarray) -> np.ndarray:
    """float16 scales; a tiny positive one stays positive."""
    return np.where(scale > 0, np.maximum(scale, np.float32(HALF_TINY)), 0).astype(np.float16)


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, and 0 where a value is 0 or so small that the inverse would be infinite."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > 1e-37)
