"""What the searches of several formats share: the scale, or scale and minimum, with the least (weighted) squared error.

Everything works on columns first, x [32, N groups], with weights w [32, N] (None: all equal): sums over a group are
then sums of long rows, which NumPy does at full speed, and a slice of groups stays in the processor's second-level
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lapinfer.quant import GROUP

HALF_MAX = float(np.finfo(np.float16).max)
HALF_NORMAL = float(np.finfo(np.float16).tiny)
"""Smaller scales have fewer digits."""
SQUARED_MAX, SQUARED_LEAST = 1e17, 1e-15
"""Sums of squares of what lies between are float32."""
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)

RANGES = tuple(
    (low, high)
    for low in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    for high in (-0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
    if abs(low - high) < 0.2
)
"""Candidate ranges of a group: parts of max − min cut off below and above."""
ROUNDS = 4
"""Rounds of alternating least squares: best scale and minimum for the codes, best codes for these."""
SIGNED_ROUNDS = 2
"""The same for a scale alone."""
NIBBLE = 15
"""The highest code of 4 bits."""


def squared(error: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    """Sums of squared errors [N]."""
    return np.einsum("cn,cn->n", error, error) if w is None else np.einsum("cn,cn,cn->n", error, error, w)


def half(scale: np.ndarray) -> np.ndarray:
    """float16 scales; a tiny positive one stays positive."""
    return np.where(scale > 0, np.maximum(scale, np.float32(HALF_TINY)), 0).astype(np.float16)


def inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, and 0 where a value is 0 or so small that the inverse would be infinite."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > 1e-37)


# ---- scales alone ----


def nearest_codes(x: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """Whole numbers low … high, float32 [32, N], that times scale [N] are nearest to x."""
    codes = x * inverse(scale.astype(np.float32))
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)


def best_scale(
    x: np.ndarray, w: np.ndarray | None, scales: Iterable[np.ndarray], codes: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Of candidate scales [N], for each group the first with the least error. codes: of a scale, [32, N]."""
    least = np.full(x.shape[1], np.inf, np.float32)
    best: np.ndarray | None = None
    for scale in scales:
        error = squared(x - codes(scale) * scale.astype(np.float32), w)
        better = error < least
        least = np.where(better, error, least)
        best = scale if best is None else np.where(better, scale, best)
    assert best is not None
    return best


def signed_half(scale: np.ndarray) -> np.ndarray:
    """float16 scales of either sign; tiny ones stay what they are, and do not become 0."""
    return np.sign(scale).astype(np.float16) * half(np.abs(scale))


def search_signed_scale(
    x: np.ndarray, w: np.ndarray | None, ranges: Iterable[float], zero: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 … 2 · zero − 1, uint8 [32, N], and float16 scales [N] of either sign: weight = scale · (code − zero).

    A negative scale lets `zero` steps, not one less, reach a group's largest weight whatever its sign. ranges: steps
    from 0 to it. The best candidate is improved by alternation: best scale for the codes, best codes for it.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]

    def codes(scale: np.ndarray) -> np.ndarray:
        return nearest_codes(x, scale, -zero, zero - 1)

    scale = best_scale(x, w, (signed_half(largest / np.float32(-steps)) for steps in ranges), codes)
    for _ in range(SIGNED_ROUNDS):
        q = codes(scale)
        weighed = q if w is None else w * q
        fitted = np.einsum("cn,cn->n", weighed, x) * inverse(np.einsum("cn,cn->n", weighed, q))
        scale = best_scale(x, w, (scale, signed_half(fitted)), codes)
    return (codes(scale) + zero).astype(np.uint8), scale


# ---- scales and minima of 4-bit codes ----


def search_scale_and_minimum(
    x: np.ndarray, w: np.ndarray | None, *, below_zero: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [N], not yet rounded; codes are 0 … 15.

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
    unit = span / np.float32(NIBBLE)
    best_gain = np.full(x.shape[1], -1, np.float32)
    best_scale, best_minimum = unit.copy(), low.copy()
    for cut_low, cut_high in RANGES:
        scale, minimum = unit * np.float32(1 - cut_low - cut_high), low + span * np.float32(cut_low)
        _improve(y, w, total, scale, minimum, best_gain, best_scale, best_minimum)
    for _ in range(ROUNDS):
        _improve(y, w, total, best_scale.copy(), best_minimum.copy(), best_gain, best_scale, best_minimum)
    return best_scale, best_minimum + centre


def _improve(y, w, total, scale, minimum, best_gain, best_scale, best_minimum) -> None:
    """Replaces the best scale and minimum of the groups where the codes of (scale, minimum) allow a smaller error.

    With centred y and q − mean(q), the least squares scale is Σwqy / Σwqq, and it explains (Σwqy)² / Σwqq of Σwyy.
    """
    q = nearest_nibbles(y, scale, minimum)
    wq = q if w is None else w * q
    mean = wq.sum(axis=0) / total
    qy = np.einsum("cn,cn->n", wq, y)
    qq = np.einsum("cn,cn->n", wq, q) - total * mean * mean
    fitted = qy * inverse(qq)
    gain = fitted * qy
    better = (gain > best_gain) & (fitted > 0)
    np.copyto(best_gain, gain, where=better)
    np.copyto(best_scale, fitted, where=better)
    np.copyto(best_minimum, -fitted * mean, where=better)


def nearest_nibbles(x: np.ndarray, scale: np.ndarray, minimum: np.ndarray, highest: int = NIBBLE) -> np.ndarray:
    """Codes 0 … highest, float32 [32, N], that times scale plus minimum are nearest to x."""
    codes = x - minimum
    codes *= inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, 0, highest, out=codes)


def best_rounding(
    x: np.ndarray,
    w: np.ndarray | None,
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    highest: int = NIBBLE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, stored scale and stored minimum of the pair with the least error: (stored, stored, value, value) [N]."""
    least = np.full(x.shape[1], np.inf, np.float32)
    stored_scale, stored_minimum, scale, minimum = (part.copy() for part in pairs[0])
    for candidate in pairs:
        s, m = candidate[2:]
        error = squared(x - (nearest_nibbles(x, s, m, highest) * s + m), w)
        better = error < least
        np.copyto(least, error, where=better)
        for best, own in zip((stored_scale, stored_minimum, scale, minimum), candidate, strict=True):
            np.copyto(best, own, where=better)
    return nearest_nibbles(x, scale, minimum, highest).astype(np.uint8), stored_scale, stored_minimum
