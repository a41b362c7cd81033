"""exp, tanh, erf, softplus and the activations on f32x16: the same bits on every platform, unlike libm."""

import numpy as np

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import GELU, GELU_TANH, NO_ACTIVATION, RELU, SILU, SWIGLU_OAI
from lapinfer.kernels.simd import (
    absolute,
    copy_sign,
    fma,
    load_f32,
    maximum,
    minimum,
    power_of_two,
    round_even,
    splat_f32,
    where_less,
)

f32 = np.float32
LOWEST = f32(-87.0)  # e^-87 is about the smallest normal float32


@jit
def exp(x):
    """e^x, error below 2 units in the last place; 0 below −87, exactly 1 at 0.

    x = n·ln 2 + r with |r| ≤ ln 2 / 2, e^r by its Taylor polynomial of degree 7.
    """
    low, high = splat_f32(LOWEST), splat_f32(f32(88.0))
    bounded = where_less(x, low, low, x)
    bounded = where_less(high, bounded, high, bounded)
    n = round_even(bounded * splat_f32(f32(1.4426950408889634)))
    r = fma(n, splat_f32(f32(-0.693359375)), bounded)
    r = fma(n, splat_f32(f32(2.12194440e-4)), r)
    p = splat_f32(f32(1 / 5040))
    p = fma(p, r, splat_f32(f32(1 / 720)))
    p = fma(p, r, splat_f32(f32(1 / 120)))
    p = fma(p, r, splat_f32(f32(1 / 24)))
    p = fma(p, r, splat_f32(f32(1 / 6)))
    p = fma(p, r, splat_f32(f32(0.5)))
    p = fma(p, r, splat_f32(f32(1.0)))
    p = fma(p, r, splat_f32(f32(1.0)))
    return where_less(x, splat_f32(LOWEST), splat_f32(f32(0.0)), p * power_of_two(n))


@jit
def tanh(x):
    """1 − 2 / (e^2|x| + 1), with the sign of x; absolute error about 1e-7."""
    one = splat_f32(f32(1.0))
    e = exp(absolute(x) * splat_f32(f32(2.0)))
    return copy_sign(one - splat_f32(f32(2.0)) / (e + one), x)


@jit
def erf(x):
    """Abramowitz and Stegun 7.1.26, absolute error below 5e-7 in float32."""
    one = splat_f32(f32(1.0))
    a = absolute(x)
    t = one / fma(a, splat_f32(f32(0.3275911)), one)
    p = splat_f32(f32(1.061405429))
    p = fma(p, t, splat_f32(f32(-1.453152027)))
    p = fma(p, t, splat_f32(f32(1.421413741)))
    p = fma(p, t, splat_f32(f32(-0.284496736)))
    p = fma(p, t, splat_f32(f32(0.254829592)))
    return copy_sign(one - p * t * exp(splat_f32(f32(0.0)) - a * a), x)


@jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log(1 + u), u = e^−|x| ≤ 1; error of a few units in the last place.

    log(1 + u) = 2 · artanh(z) with z = u / (2 + u) ≤ 1/3, by its Taylor polynomial of degree 15.
    """
    zero, two = splat_f32(f32(0.0)), splat_f32(f32(2.0))
    u = exp(zero - absolute(x))
    z = u / (u + two)
    s = z * z
    p = splat_f32(f32(1 / 15))
    p = fma(p, s, splat_f32(f32(1 / 13)))
    p = fma(p, s, splat_f32(f32(1 / 11)))
    p = fma(p, s, splat_f32(f32(1 / 9)))
    p = fma(p, s, splat_f32(f32(1 / 7)))
    p = fma(p, s, splat_f32(f32(1 / 5)))
    p = fma(p, s, splat_f32(f32(1 / 3)))
    p = fma(p, s, splat_f32(f32(1.0)))
    return fma(z * two, p, maximum(x, zero))


@jit
def sigmoid(x):
    one = splat_f32(f32(1.0))
    return one / (one + exp(splat_f32(f32(0.0)) - x))


@jit
def activate(kind, x):
    """The activation `kind` (operands.ACTIVATIONS) of x."""
    zero, half, one = splat_f32(f32(0.0)), splat_f32(f32(0.5)), splat_f32(f32(1.0))
    if kind == SILU:
        return x / (one + exp(zero - x))
    if kind == GELU:
        return half * x * (one + erf(x * splat_f32(f32(0.7071067811865476))))
    if kind == GELU_TANH:
        cubic = fma(x * x * x, splat_f32(f32(0.044715)), x)
        return half * x * (one + tanh(cubic * splat_f32(f32(0.7978845608028654))))
    if kind == NO_ACTIVATION:
        return x
    positive = maximum(x, zero)
    if kind == RELU:
        return positive
    return positive * positive


@jit
def expm1(x):
    """e^x − 1 for x ≤ 0, error below 2e-7 of the result: near 0 by the Taylor polynomial of degree 8."""
    p = splat_f32(f32(1 / 40320))
    p = fma(p, x, splat_f32(f32(1 / 5040)))
    p = fma(p, x, splat_f32(f32(1 / 720)))
    p = fma(p, x, splat_f32(f32(1 / 120)))
    p = fma(p, x, splat_f32(f32(1 / 24)))
    p = fma(p, x, splat_f32(f32(1 / 6)))
    p = fma(p, x, splat_f32(f32(0.5)))
    near = fma(p * x, x, x)
    return where_less(x, splat_f32(f32(-0.5)), exp(x) - splat_f32(f32(1.0)), near)


@jit
def xielu(curve, x):
    """xIELU of x; curve: an address of (α above 0, α below, β, ε)."""
    zero, linear = splat_f32(f32(0.0)), x * splat_f32(load_f32(curve + 8))
    above = fma(splat_f32(load_f32(curve)) * x, x, linear)
    low = minimum(x, zero)  # what is above 0 is not used, and must not overflow
    below = fma(expm1(minimum(low, splat_f32(load_f32(curve + 12)))) - low, splat_f32(load_f32(curve + 4)), linear)
    return where_less(zero, x, above, below)


@jit
def gated(kind, gate, up):
    """act(gate) · up, or the activation that takes both."""
    if kind == SWIGLU_OAI:
        one, limit = splat_f32(f32(1.0)), splat_f32(f32(7.0))
        gate = minimum(gate, limit)
        up = minimum(maximum(up, splat_f32(f32(-7.0))), limit)
        return (up + one) * (gate / (one + exp(gate * splat_f32(f32(-1.702)))))
    return activate(kind, gate) * up


@jit
def cap(x, limit):
    """limit · tanh(x / limit), or x itself where limit is 0."""
    if limit == f32(0.0):
        return x
    return splat_f32(limit) * tanh(x / splat_f32(limit))
