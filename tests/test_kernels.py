"""Every kernel against plain NumPy on awkward sizes; kernels are called chunk by chunk, as a team calls them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference

from lapinfer.kernels import library
from lapinfer.kernels.cache import address, kernel
from lapinfer.kernels.conversions import load_bf16, load_bf16x16, load_f16, load_f16x16, store_f16, store_f16x16
from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q8,
    ACT_Q16,
    ACTIVATION_KINDS,
    ACTIVATIONS,
    ADD,
    F32_TILE_GROUP,
    GATED,
    HEAD,
    ITEM,
    KEY_BLOCK,
    KV_GROUP,
    KV_KINDS,
    LAYER,
    NO_WINDOW,
    NONE,
    PARTIAL_EXTRA,
    PLAIN,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    RMS,
    STEP,
    STORE,
    TILE,
    TILE_GROUP_BYTES,
    TOKENS,
    WANT,
    KernelId,
)
from lapinfer.kernels.simd import (
    absolute,
    copy_sign,
    fma,
    load_f32,
    load_f32x16,
    load_i8,
    load_i8x16,
    load_i64,
    load_u8,
    maximum,
    minimum,
    reduce_max,
    reduce_sum,
    round_even,
    square_root,
    store_f32,
    store_f32x16,
    store_i8,
    store_i8x16,
    store_i64,
    to_whole,
    where_less,
)
from lapinfer.kernels.vecmath import activate, cap, erf, exp, tanh, xielu
from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.blocks import pack, unpack
from lapinfer.quant.formats import FORMATS, group_format
from lapinfer.quant.formats.bf16 import from_bf16, to_bf16
from lapinfer.quant.groups import Grouped
from lapinfer.runtime.items import attention_items
from lapinfer.runtime.kv import lanes, layer_cache
from lapinfer.runtime.plan import Op, Operand, encode
from lapinfer.runtime.team import KERNEL
from lapinfer.spec import AttentionSpec

ALONE = [name for name in ACTIVATIONS if name not in ("swiglu_oai", "xielu")]
"""Activations of one number; others need gate and up, or numbers of the layer."""

XIELU_TOLD = np.array([0.3, -0.7, 0.5, -1e-6], np.float32)
XIELU_CURVE = np.array([np.logaddexp(0, 0.3), 0.5 + np.logaddexp(0, -0.7), 0.5, -1e-6], np.float32)
"""The numbers of spec.Activation's xielu, and what the kernel is told."""

UNTOUCHED = np.float32(-12345.0)
"""What outputs hold before a kernel runs, to see that it writes only its own."""

F32 = np.float32
LARGEST_CODE = {ACT_Q8: 127, ACT_Q16: 255 * 127 + 127}
PRODUCTS = {name: ACT_Q8 if form.grouped else ACT_F32 for name, form in FORMATS.items()}
PRODUCTS |= {f"{name}_q16": ACT_Q16 for name, form in FORMATS.items() if form.grouped}
"""What each matmul kernel multiplies with."""
DOT_ERROR = 2e-6
"""Error of a float32 sum of products, relative to the sum of their absolute values."""


def run(kernel: KernelId, operands: dict[str, Operand], chunks: int, tokens: int, want: int | None = None) -> None:
    """All chunks of one op in a step of so many tokens."""
    assert library
    header = np.zeros(len(STEP), np.int64)
    header[TOKENS], header[WANT] = tokens, tokens if want is None else want
    row = encode(Op(kernel, kernel.name, "test", -1, 0, 1, operands), address(kernel.name))
    function = KERNEL(address(kernel.name))
    for chunk in range(chunks):
        function(row.ctypes.data, header.ctypes.data, chunk, 0)


def multiplier(kind: str, name: str) -> KernelId:
    """The kernel of one of PRODUCTS."""
    return KernelId(kind, name.removesuffix("_q16"), ACTIVATION_KINDS[PRODUCTS[name]])


def padded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def grouped_tokens(x: np.ndarray) -> np.ndarray:
    """[T, C] as [tiles, TILE, groups, 32], zeros behind."""
    T, C = x.shape
    wide = np.zeros((padded(T, TILE), padded(C, GROUP)), F32)
    wide[:T, :C] = x
    return wide.reshape(-1, TILE, wide.shape[1] // GROUP, GROUP)


def f32_tiles(x: np.ndarray) -> np.ndarray:
    """[T, C] in the layout that f32 activations have: [tiles, groups, 32 columns, 8 tokens]."""
    return np.ascontiguousarray(grouped_tokens(x).transpose(0, 2, 3, 1))


def from_f32_tiles(tiles: np.ndarray, tokens: int) -> np.ndarray:
    values = tiles.view(F32).reshape(tiles.shape[0], -1, GROUP, TILE)
    return values.transpose(0, 3, 1, 2).reshape(-1, values.shape[1] * GROUP)[:tokens]


def code_tiles(kind: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T, C] as q8 or q16 activations [tiles, groups, bytes], and the float64 values that they stand for."""
    grouped = grouped_tokens(x)
    tiles, _, groups, _ = grouped.shape
    largest = np.abs(grouped).max(-1)
    top = LARGEST_CODE[kind]
    codes = np.rint(grouped * np.where(largest > 0, top / np.where(largest > 0, largest, 1), 0)[..., None])
    scale = (largest / F32(top)).astype(F32)
    high = np.rint(codes / 255)
    parts = [codes] if kind == ACT_Q8 else [high, codes - 255 * high]
    scalars = [scale, (scale * codes.sum(-1)).astype(F32), *((-128 * p.sum(-1)).astype(np.int32) for p in parts)]
    bytes_of = [p.astype(np.int8).transpose(0, 2, 1, 3).reshape(tiles, groups, -1).view(np.uint8) for p in parts]
    bytes_of += [np.ascontiguousarray(v.transpose(0, 2, 1)).view(np.uint8) for v in scalars]
    meant = (codes * scale[..., None].astype(np.float64)).reshape(tiles * TILE, groups * GROUP)
    return np.concatenate(bytes_of, axis=2), meant[: len(x), : x.shape[1]]


def from_code_tiles(kind: int, tiles: np.ndarray, tokens: int) -> np.ndarray:
    """What written q8 or q16 activations stand for; checks that their sums are those of their codes."""
    count, groups, _ = tiles.shape
    parts, at = [], 0
    for _ in range(1 if kind == ACT_Q8 else 2):
        part = tiles[..., at : at + 32 * TILE].view(np.int8).reshape(count, groups, TILE, GROUP)
        parts.append(part.transpose(0, 2, 1, 3).reshape(-1, groups, GROUP)[:tokens].astype(np.int64))
        at += 32 * TILE
    scalars = []
    for dtype in (F32, F32, *[np.int32] * len(parts)):
        values = np.ascontiguousarray(tiles[..., at : at + 4 * TILE]).view(dtype)
        scalars.append(values.transpose(0, 2, 1).reshape(-1, groups)[:tokens])
        at += 4 * TILE
    codes = parts[0] if kind == ACT_Q8 else 255 * parts[0] + parts[1]
    assert all(np.abs(part).max() <= 127 for part in parts)
    np.testing.assert_array_equal(scalars[1], scalars[0] * codes.sum(-1).astype(F32))
    for part, sums in zip(parts, scalars[2:], strict=True):
        np.testing.assert_array_equal(sums, -128 * part.sum(-1))
    return (codes * scalars[0][..., None].astype(np.float64)).reshape(tokens, -1)


def assert_tiles(tiles: np.ndarray, kind: int, expected: np.ndarray, error: float = 2e-6) -> None:
    """Written activation tiles hold `expected` [T, C], zeros behind; `error` is relative to the largest of a group."""
    T, C = expected.shape
    got = from_f32_tiles(tiles, T) if kind == ACT_F32 else from_code_tiles(kind, tiles, T)
    wide = np.zeros_like(got)
    wide[:, :C] = expected
    largest = np.abs(wide.reshape(T, -1, GROUP)).max(-1).repeat(GROUP, axis=1)
    rounding = {ACT_F32: 0.0, ACT_Q8: 0.51 / LARGEST_CODE[ACT_Q8], ACT_Q16: 0.51 / LARGEST_CODE[ACT_Q16]}[kind]
    assert (np.abs(got - wide) <= largest * (error + rounding) + 1e-30).all()
    assert not got[:, C:].any()


def empty_tiles(tokens: int, groups: int, kind: int) -> np.ndarray:
    size = {ACT_F32: F32_TILE_GROUP, ACT_Q8: Q8_TILE_GROUP, ACT_Q16: Q16_TILE_GROUP}[kind]
    return np.zeros((padded(tokens, TILE) // TILE, groups, size), np.uint8)


def random_weights(fmt: str, rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Packed blocks that use all codes, and the float64 matrix that they stand for."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.002, 0.02, (rows, -(-columns // GROUP))).astype(np.float16)
    if fmt == "q8":
        codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        codes[0] = np.resize([-127, 127], columns)
        made: np.ndarray | Grouped = Grouped(group_format("q8"), codes, scale)
    elif fmt == "q6":
        codes = rng.integers(0, 64, (rows, columns)).astype(np.uint8)
        whole = rng.integers(0, 256, scale.shape).astype(np.uint8)
        made = Grouped(group_format("q6"), codes, whole, unit=rng.uniform(1e-5, 1e-4, rows).astype(F32))
    elif fmt == "mxfp4":
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        exponents = rng.integers(118, 124, scale.shape).astype(np.uint8)
        exponents[0] = 0
        made = Grouped(group_format("mxfp4"), codes, exponents)
    elif fmt in ("q4_1", "q4"):
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        codes[0] = 15
        if fmt == "q4_1":
            made = Grouped(
                group_format("q4_1"), codes, scale, (-8 * scale + rng.normal(0, 0.01, scale.shape)).astype(np.float16)
            )
        else:
            whole = [rng.integers(0, 256, scale.shape).astype(np.uint8) for _ in range(2)]
            whole[0][0] = whole[1][1] = 255
            made = Grouped(group_format("q4"), codes, *whole, unit=rng.uniform(1e-5, 1e-4, rows).astype(F32))
    else:
        made = (rng.standard_normal((rows, columns)) * 0.1).astype(F32)
    blocks = pack(fmt, made)
    return blocks, unpack(fmt, blocks, (rows, columns)).astype(np.float64)


# ---- SIMD and vector mathematics: small kernels that exist for these tests. op: from, step: to, chunk: how many. ----


def elementwise(name: str, x: np.ndarray, out_dtype: type = np.float32) -> np.ndarray:
    """One of the kernels below over all of x (a multiple of 16 values)."""
    assert x.size % 16 == 0
    x = np.ascontiguousarray(x)
    out = np.zeros(x.size, out_dtype)
    KERNEL(address(name))(x.ctypes.data, out.ctypes.data, x.size, 0)
    return out


@kernel
def t_exp(op, step, chunk, thread):
    for at in range(0, 4 * chunk, 64):
        store_f32x16(step + at, exp(load_f32x16(op + at)))


@kernel
def t_tanh(op, step, chunk, thread):
    for at in range(0, 4 * chunk, 64):
        store_f32x16(step + at, tanh(load_f32x16(op + at)))


@kernel
def t_erf(op, step, chunk, thread):
    for at in range(0, 4 * chunk, 64):
        store_f32x16(step + at, erf(load_f32x16(op + at)))


@kernel
def t_cap(op, step, chunk, thread):
    """The first value is the limit."""
    for at in range(0, 4 * chunk, 64):
        store_f32x16(step + at, cap(load_f32x16(op + at), load_f32(op)))


@kernel
def t_activate(op, step, chunk, thread):
    """All five activations; the output has five times the size."""
    for kind in range(5):
        for at in range(0, 4 * chunk, 64):
            store_f32x16(step + 4 * kind * chunk + at, activate(kind, load_f32x16(op + at)))


@kernel
def t_xielu(op, step, chunk, thread):
    """step = xielu of op[4:], told by op[:4]."""
    for at in range(0, 4 * chunk, 64):
        store_f32x16(step + at, xielu(op, load_f32x16(op + 16 + at)))


@kernel
def t_halves(op, step, chunk, thread):
    """float32 of halves by vectors, then one by one."""
    for i in range(0, chunk, 16):
        store_f32x16(step + 4 * i, load_f16x16(op + 2 * i))
    for i in range(chunk):
        store_f32(step + 4 * (chunk + i), load_f16(op + 2 * i))


@kernel
def t_bfloats(op, step, chunk, thread):
    """float32 of bfloat16 by vectors, then one by one."""
    for i in range(0, chunk, 16):
        store_f32x16(step + 4 * i, load_bf16x16(op + 2 * i))
    for i in range(chunk):
        store_f32(step + 4 * (chunk + i), load_bf16(op + 2 * i))


@kernel
def t_to_halves(op, step, chunk, thread):
    """Halves of float32 by vectors, then one by one."""
    for i in range(0, chunk, 16):
        store_f16x16(step + 2 * i, load_f32x16(op + 4 * i))
    for i in range(chunk):
        store_f16(step + 2 * (chunk + i), load_f32(op + 4 * i))


@kernel
def t_to_bytes(op, step, chunk, thread):
    for i in range(0, chunk, 16):
        store_i8x16(step + i, to_whole(load_f32x16(op + 4 * i)))
    for i in range(chunk):
        store_i8(step + chunk + i, load_f32(op + 4 * i))


@kernel
def t_bytes(op, step, chunk, thread):
    """float32 of bytes by vectors, signed one by one, unsigned one by one."""
    for i in range(0, chunk, 16):
        store_f32x16(step + 4 * i, load_i8x16(op + i))
    for i in range(chunk):
        store_f32(step + 4 * (chunk + i), np.float32(load_i8(op + i)))
        store_f32(step + 4 * (2 * chunk + i), np.float32(load_u8(op + i)))


@kernel
def t_reduce(op, step, chunk, thread):
    """Sum and maximum of each 16."""
    for i in range(0, chunk, 16):
        store_f32(step + i // 2, reduce_sum(load_f32x16(op + 4 * i)))
        store_f32(step + i // 2 + 4, reduce_max(load_f32x16(op + 4 * i)))


@kernel
def t_lanes(op, step, chunk, thread):
    """Seven functions of pairs of vectors (16 values each)."""
    for i in range(chunk // 32):
        a, b, out = load_f32x16(op + 128 * i), load_f32x16(op + 128 * i + 64), step + 448 * i
        store_f32x16(out, maximum(a, b))
        store_f32x16(out + 64, minimum(a, b))
        store_f32x16(out + 128, copy_sign(a, b))
        store_f32x16(out + 192, round_even(a))
        store_f32x16(out + 256, square_root(absolute(a)))
        store_f32x16(out + 320, where_less(a, b, a, b))
        store_f32x16(out + 384, fma(a, b, a))


@kernel
def t_words(op, step, chunk, thread):
    for i in range(chunk):
        store_i64(step + 8 * i, load_i64(op + 8 * i) + 1)


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(F32))).max())


def test_exp_is_exact_to_two_ulps() -> None:
    x = np.linspace(-87, 88, 1 << 20, dtype=F32)
    assert ulps(elementwise("t_exp", x), np.exp(x.astype(np.float64))) < 2
    special = np.array([0.0, -0.0, -87.5, -1e30, -np.inf, np.nan, 1.0, 0.5] * 2, F32)
    got = elementwise("t_exp", special)[:8]
    assert got[0] == got[1] == 1
    assert not got[2:5].any()
    assert np.isnan(got[5])


def test_tanh_erf_and_cap_are_within_their_bounds() -> None:
    x = np.concatenate([np.linspace(-12, 12, 1 << 16, dtype=F32), np.logspace(-30, 30, 1 << 10, dtype=F32)])
    exact = x.astype(np.float64)
    assert np.abs(elementwise("t_tanh", x) - np.tanh(exact)).max() < 2e-7
    assert np.abs(elementwise("t_erf", x) - np.vectorize(reference.erf)(exact)).max() < 5e-7
    x[0] = 30.0
    assert np.abs(elementwise("t_cap", x) - 30 * np.tanh(x.astype(np.float64) / 30)).max() < 6e-6
    x[0] = 0.0
    np.testing.assert_array_equal(elementwise("t_cap", x), x)
    assert np.isnan(elementwise("t_tanh", np.full(16, np.nan, F32))).all()


def test_activations_are_those_of_the_oracle() -> None:
    x = np.concatenate([np.linspace(-20, 20, 1 << 12, dtype=F32), F32([-1e4, -100, -0.0, 0.0, 100, 1e4] * 8)])
    out = np.zeros((len(ALONE), len(x)), F32)
    KERNEL(address("t_activate"))(x.ctypes.data, out.ctypes.data, len(x), 0)
    for name, got in zip(ALONE, out, strict=True):
        with np.errstate(over="ignore"):
            exact = reference.activate(name, x.astype(np.float64))
        assert (np.abs(got - exact) <= 4e-7 * np.maximum(np.abs(x), np.abs(exact)) + 1e-12).all(), name


def test_xielu_is_that_of_the_oracle() -> None:
    x = np.concatenate(
        [np.linspace(-8, 8, 1 << 12, dtype=F32), F32([-1e4, -1e-3, -1e-7, -0.0, 0.0, 1e-7, 1e3, 30] * 2)]
    )
    told, out = np.concatenate([XIELU_CURVE, x]), np.zeros_like(x)
    KERNEL(address("t_xielu"))(told.ctypes.data, out.ctypes.data, len(x), 0)
    exact = reference.xielu(XIELU_TOLD.astype(np.float64), x.astype(np.float64))
    assert (np.abs(out - exact) <= 4e-7 * np.maximum(np.abs(x), np.abs(exact)) + 1e-12).all()


def test_every_half_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.zeros((2, len(bits)), F32)
    KERNEL(address("t_halves"))(bits.ctypes.data, out.ctypes.data, len(bits), 0)
    with np.errstate(invalid="ignore"):
        expected = bits.view(np.float16).astype(F32)
    for got in out:
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(got.view(np.uint32)[number], expected.view(np.uint32)[number])
        assert np.isnan(got[~number]).all()


def test_halves_are_written_as_numpy_rounds() -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(F32)
    ties = (halves[:-1] + halves[1:]) / 2
    any_bits = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(F32)
    small = rng.standard_normal(1 << 16).astype(F32) * F32(2.0**-20)
    edges = F32([65504, 65519.99, 65520, 65536, -65520, np.inf, -np.inf, np.nan, 2**-24, 2**-25, 1.1 * 2**-25, 0, -0.0])
    x = np.concatenate(
        [halves, ties, np.nextafter(ties, F32(np.inf)), np.nextafter(ties, F32(0)), any_bits, small, edges]
    )
    x = np.resize(x, padded(len(x), 16))
    out = np.zeros((2, len(x)), np.uint16)
    KERNEL(address("t_to_halves"))(x.ctypes.data, out.ctypes.data, len(x), 0)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    for got in out:
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(got[number], expected.view(np.uint16)[number])
        assert np.isnan(got.view(np.float16)[~number]).all()


def test_every_bfloat_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.zeros((2, len(bits)), np.uint32)
    KERNEL(address("t_bfloats"))(bits.ctypes.data, out.ctypes.data, len(bits), 0)
    for got in out:
        np.testing.assert_array_equal(got, from_bf16(bits).view(np.uint32))


def test_bytes_are_read_and_written() -> None:
    bits = np.arange(256, dtype=np.uint8)
    out = np.zeros((3, 256), F32)
    KERNEL(address("t_bytes"))(bits.ctypes.data, out.ctypes.data, 256, 0)
    for got, expected in zip(out, (bits.view(np.int8), bits.view(np.int8), bits), strict=True):
        np.testing.assert_array_equal(got, expected)
    x = np.arange(-128, 128, dtype=F32)
    x[0] = np.nan
    written = np.zeros((2, 256), np.int8)
    KERNEL(address("t_to_bytes"))(x.ctypes.data, written.ctypes.data, 256, 0)
    for got in written:
        np.testing.assert_array_equal(got[1:], x[1:])
        assert got[0] == 0


def test_reductions_fold_halves_in_a_fixed_order() -> None:
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(F32) * np.logspace(-6, 6, 16, dtype=F32)
    total = x
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    got = elementwise("t_reduce", x)[:128].reshape(64, 2)
    np.testing.assert_array_equal(got[:, 0], total[:, 0])
    np.testing.assert_array_equal(got[:, 1], x.max(1))
    x[0, 5] = np.nan
    assert np.isnan(elementwise("t_reduce", x)[:2]).all()


def test_functions_of_lanes() -> None:
    pairs = np.random.default_rng(0).standard_normal((32, 2, 16)).astype(F32) * 10
    pairs[0, 0, :8] = [0.5, 1.5, 2.5, -0.5, -1.5, 0.0, 1e20, -1e20]
    pairs[1, 0, 0] = np.nan
    out = np.zeros((32, 7, 16), F32)
    KERNEL(address("t_lanes"))(pairs.ctypes.data, out.ctypes.data, pairs.size, 0)
    a, b = pairs[:, 0], pairs[:, 1]
    with np.errstate(invalid="ignore"):
        expected = [np.maximum(a, b), np.minimum(a, b), np.copysign(a, b), np.rint(a), np.sqrt(np.abs(a))]
        expected.append(np.where(a < b, a, b))
    for i, values in enumerate(expected):
        np.testing.assert_array_equal(out[:, i], values)
    exact = a.astype(np.float64) * b + a
    np.testing.assert_allclose(out[:, 6], exact, rtol=1e-6, atol=1e-6)
    words = np.array([0, -1, 1 << 62], np.int64)
    KERNEL(address("t_words"))(words.ctypes.data, words.ctypes.data, 3, 0)
    assert words.tolist() == [1, 0, (1 << 62) + 1]


# ---- matrices ----


def gated(activation: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """act(gate) · up."""
    if activation == "swiglu_oai":
        gate = np.minimum(gate, 7)
        return (np.clip(up, -7, 7) + 1) * gate / (1 + np.exp(-1.702 * gate))
    return reference.activate(activation, gate) * up


TOKEN_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)


def matmul(
    name: str, blocks: int, unit: int, columns: int, tokens: int, mode: int, **options: Operand
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Runs one matmul: its output arrays, W · x in float64 [T, R], and Σ|W||x| (what errors are relative to)."""
    packed, W = random_weights(name.removesuffix("_q16"), ROWS * blocks, columns, seed=blocks)
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, columns)).astype(F32)
    x[0, :GROUP] = 0
    kind = PRODUCTS[name]
    tiles, meant = (f32_tiles(x), x.astype(np.float64)) if kind == ACT_F32 else code_tiles(kind, x)
    R, least = ROWS * blocks, {GATED: 4, PLAIN: 2}.get(mode, 1)
    tiled, out_kind = mode in (GATED, PLAIN), int(options.get("out_kind", 0))  # type: ignore[arg-type]
    outputs = {
        "out": empty_tiles(tokens, blocks // least, out_kind) if tiled else np.full((tokens + 1, R + 16), UNTOUCHED),
        "block_max": np.full((tokens + 1, blocks), UNTOUCHED),
    }
    if mode == ADD:
        outputs["out"][:tokens, :R] = 1.0
    operands: dict[str, Operand] = {
        "weights": packed, "row_blocks": blocks, "groups": -(-columns // GROUP), "unit": unit,
        "x": tiles, "tile_bytes": -(-columns // GROUP) * TILE_GROUP_BYTES[kind], "chunks": -(-blocks // unit),
        "weights_step": 0, "x_step": 0, "out_step": 0, "tokens": TOKENS, "mode": mode,
        "out": outputs["out"], "out_stride": outputs["out"].strides[0],
        "bias": 0, "scale": 1.0, "softcap": 0.0, "activation": 0, "curve": 0, "out_groups": blocks // least,
        "out_kind": out_kind,
        "block_max": outputs["block_max"], "scratch": np.zeros(1 << 16, F32), "scratch_stride": 0,
    }  # fmt: skip
    run(multiplier("matmul", name), operands | options, -(-blocks // unit), tokens)
    return outputs, meant @ W.T, np.abs(meant) @ np.abs(W).T


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("tokens", TOKEN_COUNTS)
def test_matmul_stores_and_adds(name: str, tokens: int) -> None:
    for blocks, unit, columns in ((1, 1, 20), (3, 2, 96), (5, 4, 160)):
        bias = np.linspace(-1, 1, ROWS * blocks, dtype=F32)
        for mode in (STORE, ADD):
            outputs, product, size = matmul(name, blocks, unit, columns, tokens, mode, bias=bias, scale=0.5)
            got, R = outputs["out"], ROWS * blocks
            expected = (product + bias) * 0.5 + (1.0 if mode == ADD else 0.0)
            assert (np.abs(got[:tokens, :R] - expected) <= DOT_ERROR * (size + 2)).all()
            assert (got[tokens:] == UNTOUCHED).all()
            assert (got[:, R:] == UNTOUCHED).all()


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("unit", [1, 4, 8, 16])
def test_rows_of_bands_are_the_same_in_any_chunks(name: str, unit: int) -> None:
    """21 row blocks: two bands of eight, and a last one of five."""
    for tokens in (1, 2, 3):
        outputs, product, size = matmul(name, 21, unit, 40, tokens, STORE)
        got = outputs["out"][:tokens, : ROWS * 21]
        assert (np.abs(got - product) <= DOT_ERROR * (size + 2)).all()
        if unit > 1:
            alone = matmul(name, 21, 1, 40, tokens, STORE)[0]["out"][:tokens, : ROWS * 21]
            np.testing.assert_array_equal(got, alone)


@pytest.mark.parametrize("name", PRODUCTS)
def test_head_caps_and_finds_block_maxima(name: str) -> None:
    for tokens, softcap in ((1, 0.0), (3, 2.0), (9, 0.0), (17, 2.0)):
        outputs, product, size = matmul(name, 7, 2, 64, tokens, HEAD, scale=0.5, softcap=softcap)
        logits = outputs["out"][:tokens, : 7 * ROWS]
        expected = reference.cap(product * 0.5, softcap or None)
        assert (np.abs(logits - expected) <= DOT_ERROR * (size + 2)).all()
        np.testing.assert_array_equal(outputs["block_max"][:tokens], logits.reshape(tokens, 7, ROWS).max(-1))
        assert (outputs["block_max"][tokens:] == UNTOUCHED).all()


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mode", [PLAIN, GATED], ids=["plain", "gated"])
def test_matmul_with_activation(name: str, activation: str, mode: int) -> None:
    if activation == ("xielu" if mode == GATED else "swiglu_oai"):
        pytest.skip("needs a gate, or has none")
    for tokens, blocks, out_kind in ((1, 4, ACT_Q8), (3, 12, ACT_F32), (8, 12, ACT_Q16), (17, 4, ACT_F32)):
        bias = np.linspace(-1, 1, ROWS * blocks, dtype=F32)
        options: dict[str, Operand] = {"bias": bias, "activation": ACTIVATIONS.index(activation), "out_kind": out_kind}
        options["curve"] = XIELU_CURVE if activation == "xielu" else 0
        outputs, product, _ = matmul(name, blocks, 4, 96, tokens, mode, **options)
        y = product + bias
        if mode == GATED:
            sides = y.reshape(tokens, -1, 2, ROWS)
            y = gated(activation, sides[:, :, 0], sides[:, :, 1]).reshape(tokens, -1)
        elif activation == "xielu":
            y = reference.xielu(XIELU_TOLD, y)
        else:
            y = reference.activate(activation, y)
        assert_tiles(outputs["out"], out_kind, y, error=1e-5)


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
def test_router(fmt: str) -> None:
    for tokens, rows, columns in ((1, 16, 70), (7, 40, 32), (8, 130, 96), (19, 300, 40)):
        packed, W = random_weights(fmt, padded(rows, ROWS), columns)
        rng = np.random.default_rng(tokens)
        x, out = np.zeros((tokens, padded(columns, GROUP)), F32), np.full((tokens + 1, 320), UNTOUCHED)
        x[:, :columns] = rng.standard_normal((tokens, columns))
        bias = rng.standard_normal(len(W)).astype(F32)
        operands: dict[str, Operand] = {
            "weights": packed, "row_blocks": len(packed), "groups": x.shape[1] // GROUP, "x": x,
            "x_stride": x.strides[0], "out": out, "out_stride": out.strides[0], "bias": bias,
        }  # fmt: skip
        run(KernelId("router", fmt), operands, len(packed), tokens)
        expected = x[:, :columns].astype(np.float64) @ W.T + bias
        size = np.abs(x[:, :columns]) @ np.abs(W).T + 4
        assert (np.abs(out[:tokens, : len(W)] - expected) <= DOT_ERROR * size).all()
        assert (out[tokens:] == UNTOUCHED).all()
        assert (out[:tokens, len(W) :] == UNTOUCHED).all()


# ---- embedding and norms ----


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("learned", [False, True])
def test_embed(fmt: str, learned: bool) -> None:
    vocab, D, T = 16 * 21 + 5, 70, 40  # two bands, and a last one of six row blocks
    packed, W = random_weights(fmt, vocab, D)
    wide = padded(D, GROUP)
    rng = np.random.default_rng(0)
    token, pos = rng.integers(0, vocab, T), rng.integers(0, 50, T)
    positions = np.zeros((50, wide), F32)
    positions[:, :D] = rng.standard_normal((50, D))
    out = np.full((T + 1, wide), UNTOUCHED)
    operands: dict[str, Operand] = {
        "weights": packed, "row_blocks": len(packed), "groups": wide // GROUP, "token": token, "pos": pos,
        "positions": positions if learned else 0, "scale": 1.5, "out": out, "out_stride": out.strides[0],
    }  # fmt: skip
    token[0], token[1] = vocab - 1, 0
    run(KernelId("embed", fmt), operands, -(-T // TILE), T)
    expected = W[token] * 1.5 + (positions[pos, :D] if learned else 0)
    np.testing.assert_allclose(out[:T, :D], expected, rtol=1e-6, atol=1e-6)
    assert (out[T:] == UNTOUCHED).all()
    # Not always zeros: a minimum, or what the code 0 means. Norms and matrices ignore it.
    np.testing.assert_allclose(out[:T, D:], unpack(fmt, packed, (vocab, wide))[token, D:] * 1.5, rtol=1e-6, atol=1e-6)


def norm_oracle(kind: int, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    if kind == NONE:
        return x
    if kind == LAYER:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def norm_data(kind: int, T: int, width: int, biased: bool) -> tuple[np.ndarray, dict[str, Operand], Callable]:
    """x [T, padded] with zeros behind the width, the operands of a norm, and the oracle for it."""
    rng = np.random.default_rng(width)
    wide = padded(width, GROUP)
    x, weight, bias = np.zeros((T, wide), F32), np.zeros(wide, F32), np.zeros(wide, F32)
    x[:, :width] = rng.standard_normal((T, width)) * 3 + 1
    weight[:width], bias[:width] = rng.standard_normal(width), rng.standard_normal(width) if biased else 0
    operands: dict[str, Operand] = {
        "width": width, "weight": 0 if kind == NONE else weight, "bias": bias if biased else 0, "eps": 1e-3,
        "norm": kind,
    }  # fmt: skip
    return x, operands, lambda v: norm_oracle(kind, v[:, :width], weight[:width], bias[:width], 1e-3)


@pytest.mark.parametrize("width", [20, 48, 64, 90, 576])
@pytest.mark.parametrize("kind", [RMS, LAYER, NONE], ids=["rms", "layer", "none"])
@pytest.mark.parametrize("out_kind", [ACT_F32, ACT_Q8, ACT_Q16], ids=ACTIVATION_KINDS)
def test_norm(width: int, kind: int, out_kind: int) -> None:
    T = 13
    x, operands, oracle = norm_data(kind, T, width, biased=kind == LAYER)
    groups = x.shape[1] // GROUP
    shared = operands | {"x": x, "x_stride": x.strides[0], "groups": groups, "out_kind": out_kind}
    out = empty_tiles(T, groups, out_kind)
    exact = np.full((T + 1, GROUP * groups), UNTOUCHED)
    run(KernelId("norm"), shared | {"rows": 0, "tokens": TOKENS, "out": out, "exact": exact}, 2, T)
    assert_tiles(out, out_kind, oracle(x))
    np.testing.assert_allclose(exact[:T, :width], oracle(x), rtol=1e-5, atol=1e-5)
    assert (exact[T:] == UNTOUCHED).all()
    assert not exact[:T, width:].any() or kind == NONE
    rows = np.array([12, 3, 7])
    out = empty_tiles(3, groups, out_kind)
    run(KernelId("norm"), shared | {"rows": rows, "tokens": WANT, "out": out, "exact": 0}, 1, T, want=3)
    assert_tiles(out, out_kind, oracle(x)[rows])


@pytest.mark.parametrize("width", [20, 48, 90, 576])
@pytest.mark.parametrize("kind", [RMS, LAYER], ids=["rms", "layer"])
def test_add_norm(width: int, kind: int) -> None:
    T = 11
    y, operands, oracle = norm_data(kind, T, width, biased=kind == LAYER)
    x = np.ones((T + 1, y.shape[1]), F32)
    strides: dict[str, Operand] = {"y": y, "y_stride": y.strides[0], "x": x, "x_stride": x.strides[0], "scale": 0.25}
    run(KernelId("add_norm"), operands | strides, 2, T)
    np.testing.assert_allclose(x[:T, :width], 1 + 0.25 * oracle(y), rtol=1e-5, atol=1e-5)
    assert (x[T:] == 1).all()


# ---- heads, cache, attention ----


def spread(scales: np.ndarray, width: int) -> np.ndarray:
    """float64 [capacity, width]: the scale of each number, of bfloat16 scales [groups, capacity]."""
    return np.repeat(from_bf16(scales).astype(np.float64), KV_GROUP, axis=0)[:width].T


def read_keys(cache, slot: int, head: int) -> np.ndarray:
    """float64 [capacity, k_dim]."""
    keys = cache.keys[slot, head].transpose(0, 2, 1).reshape(cache.capacity, -1).astype(np.float64)
    return keys * spread(cache.key_scales[slot, head], keys.shape[1]) if cache.kind == "q8" else keys


def read_values(cache, slot: int, head: int, v_dim: int) -> np.ndarray:
    """float64 [capacity, v_dim]."""
    values = cache.values[slot, head].astype(np.float64)[:, :v_dim]
    return values * spread(cache.value_scales[slot, head], v_dim) if cache.kind == "q8" else values


def cache_operands(cache, spec: AttentionSpec, qkv: np.ndarray, pos: np.ndarray) -> dict[str, Operand]:
    return {
        "qkv": qkv, "qkv_stride": qkv.strides[0], "heads": spec.n_heads, "kv_heads": spec.n_kv_heads, "pos": pos,
        "k_dim": spec.k_dim, "v_dim": spec.v_dim, "k_cache": cache.keys, "v_cache": cache.values,
        "k_scale": cache.key_scales, "v_scale": cache.value_scales, "capacity": cache.capacity,
    }  # fmt: skip


KV_ERROR = {"f32": 1e-6, "f16": 2**-11, "q8": 0.5 / 127 * (1 + 2**-7) + 1e-5}
"""Rounding of a stored number, relative to the largest of its group; a scale of q8 is rounded up to a bfloat16."""


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("variant", [
    "plain", "interleaved", "partial", "norm", "norm_full", "norm_each", "norm_layer", "norm_after", "no_rope", "clip",
    "growth",
])  # fmt: skip
def test_rope_store(kv: str, variant: str) -> None:
    rng = np.random.default_rng(0)
    k_dim, v_dim, T, slots = (64, 48, 11, 2) if variant == "plain" else (20, 24, 11, 2)
    spec = AttentionSpec(6, 3, k_dim, v_dim, 1.0)
    cache = layer_cache(spec, kv, slots, 200, 1)
    qkv = np.full((T + 1, padded(spec.qkv_rows, GROUP)), UNTOUCHED)
    qkv[:T, : spec.qkv_rows] = rng.standard_normal((T, spec.qkv_rows))
    before = qkv.copy()
    pos = rng.permutation(256)[:T] + 40  # some are beyond the capacity of 256: a ring
    slot = rng.integers(0, slots, T)
    dim = {"partial": 12, "no_rope": 0}.get(variant, k_dim)
    table = rng.standard_normal((300, max(dim, 1))).astype(F32)
    full, each = variant == "norm_full", variant == "norm_each"
    weights = [rng.standard_normal(n * k_dim).astype(F32) for n in ((6, 3) if full or each else (1, 1))]
    normed, kind = variant.startswith("norm"), LAYER if variant == "norm_layer" else RMS
    biases = [w[::-1].copy() if kind == LAYER else np.zeros_like(w) for w in weights]
    growth = rng.uniform(1, 2, 300).astype(F32)
    operands = cache_operands(cache, spec, qkv, pos) | {
        "rope": table if dim else 0, "rope_dim": dim, "interleaved": int(variant == "interleaved"), "slot": slot,
        "kv": KV_KINDS.index(kv), "q_norm": weights[0] if normed else 0, "k_norm": weights[1] if normed else 0,
        "q_norm_bias": biases[0] if kind == LAYER else 0, "k_norm_bias": biases[1] if kind == LAYER else 0,
        "norm": kind,
        "norm_full": int(full), "norm_each": int(each), "norm_after": int(variant == "norm_after"), "eps": 1e-3,
        "growth": growth if variant == "growth" else 0, "clip": 0.5 if variant == "clip" else 0.0, "of_layer": 0,
    }  # fmt: skip
    run(KernelId("rope_store"), operands, 2, T)
    q, k, v = np.split(before[:T, : spec.qkv_rows].astype(np.float64), [6 * k_dim, 9 * k_dim], axis=1)
    q, k, v = q.reshape(T, 6, k_dim), k.reshape(T, 3, k_dim), v.reshape(T, 3, v_dim)

    def norms(q: np.ndarray, k: np.ndarray) -> list[np.ndarray]:
        rows = ((T, 1, 6 * k_dim), (T, 1, 3 * k_dim)) if full else (q.shape, k.shape)
        return [
            norm_oracle(kind, x.reshape(r), w.reshape(-1, r[-1]), b.reshape(-1, r[-1]), 1e-3).reshape(x.shape)
            for x, r, w, b in zip((q, k), rows, weights, biases, strict=True)
        ]

    if normed and variant != "norm_after":
        q, k = norms(q, k)
    if variant == "clip":
        q, k, v = (np.clip(x, -0.5, 0.5) for x in (q, k, v))
    if dim:
        half, q, k = dim // 2, q.copy(), k.copy()
        first = slice(0, dim, 2) if variant == "interleaved" else slice(0, half)
        second = slice(1, dim, 2) if variant == "interleaved" else slice(half, dim)
        c, s = table[pos, None, :half].astype(np.float64), table[pos, None, half:dim].astype(np.float64)
        for x in (q, k):
            a, b = x[..., first].copy(), x[..., second].copy()
            x[..., first], x[..., second] = a * c - b * s, b * c + a * s
    if variant == "norm_after":
        q, k = norms(q, k)
    if variant == "growth":
        q = q * growth[pos, None, None]
    np.testing.assert_allclose(qkv[:T, : 6 * k_dim], q.reshape(T, -1), rtol=1e-5, atol=1e-5)
    assert (qkv[T:] == UNTOUCHED).all()
    stored = np.zeros((slots, cache.capacity), bool)
    for t in range(T):
        place = pos[t] % cache.capacity
        stored[slot[t], place] = True
        for h in range(3):
            for got, x in ((read_keys(cache, slot[t], h), k[t, h]), (read_values(cache, slot[t], h, v_dim), v[t, h])):
                for i in range(0, len(x), KV_GROUP):
                    own = slice(i, i + KV_GROUP)
                    assert np.abs(got[place, own] - x[own]).max() <= KV_ERROR[kv] * np.abs(x[own]).max() + 1e-5
    for s in range(slots):
        assert not read_keys(cache, s, 0)[~stored[s]].any()
        assert not cache.values[s, :, ~stored[s]].any()


def run_attention(spec: AttentionSpec, kv: str, slot: np.ndarray, pos: np.ndarray, splits: int) -> tuple:
    """Attention and merge over a cache of random numbers; (what they wrote [T, H·v], what it should be)."""
    rng = np.random.default_rng(0)
    T, H, K = len(pos), spec.n_heads, spec.n_kv_heads
    slots, ctx = int(slot.max()) + 1, int(pos.max()) + 1
    cache = layer_cache(spec, kv, slots, ctx, T)  # type: ignore[arg-type]
    for array in (cache.keys, cache.values):
        array[:] = rng.integers(-127, 128, array.shape) if kv == "q8" else rng.standard_normal(array.shape)
    for array in (cache.key_scales, cache.value_scales):
        array[:] = to_bf16(rng.uniform(0.005, 0.02, array.shape))
    qkv = rng.standard_normal((T, padded(spec.qkv_rows, GROUP))).astype(F32)
    items, part = np.zeros((4096, len(ITEM)), np.int64), np.zeros((padded(T, TILE), 2), np.int64)
    partials = 4096
    count = attention_items(slot, pos, items, part, partials, splits)
    partial = np.full((partials, H, lanes(spec.v_dim) + PARTIAL_EXTRA), np.nan, F32)
    window = NO_WINDOW if spec.window is None else spec.window
    scratch: dict[str, Operand] = {"scratch": np.zeros(1 << 18, F32), "scratch_stride": 0, "window": window}
    shared: dict[str, Operand] = {"partial": partial, "part_table": part, **scratch}
    options: dict[str, Operand] = {"items": items, "scale": spec.scale, "softcap": spec.softcap or 0.0}
    run(KernelId("attention", kv), cache_operands(cache, spec, qkv, pos) | shared | options, count * K, T)
    groups = padded(H * spec.v_dim, GROUP) // GROUP
    out = empty_tiles(T, groups, 0)
    sinks = rng.standard_normal(H).astype(F32) * 3
    merge = {"heads": H, "v_dim": spec.v_dim, "pos": pos, "out": out, "groups": groups, "out_kind": 0}
    merge["sinks"] = sinks if spec.sinks else 0
    gate = rng.standard_normal((T, H * spec.v_dim)).astype(F32)
    merge |= {"gate": gate.ctypes.data if spec.gated else 0, "gate_stride": gate.strides[0]}
    run(KernelId("merge"), shared | merge, padded(T, TILE) // TILE, T)
    expected = np.zeros((T, H, spec.v_dim))
    for t in range(T):
        first = 0 if spec.window is None else max(pos[t] - spec.window + 1, 0)
        places = np.arange(first, pos[t] + 1) % cache.capacity
        for h in range(H):
            head = h // (H // K)
            q = qkv[t, h * spec.k_dim : (h + 1) * spec.k_dim].astype(np.float64) * spec.scale
            s = reference.cap(read_keys(cache, slot[t], head)[places] @ q, spec.softcap)
            s = np.append(s, sinks[h] if spec.sinks else -np.inf)
            p = np.exp(s - s.max())
            expected[t, h] = (p / p.sum())[:-1] @ read_values(cache, slot[t], head, spec.v_dim)[places]
    expected = expected.reshape(T, -1)
    return out, expected / (1 + np.exp(-gate.astype(np.float64))) if spec.gated else expected


ATTENTIONS = {
    "mha": AttentionSpec(2, 2, 16, 16, 0.3),
    "gqa": AttentionSpec(9, 3, 64, 64, 0.125),
    "mqa": AttentionSpec(5, 1, 20, 24, 0.2),
    "sinks": AttentionSpec(4, 2, 32, 32, 0.3, sinks=True),
    "softcap": AttentionSpec(4, 2, 32, 32, 0.3, softcap=5.0),
    "gated": AttentionSpec(4, 2, 32, 32, 0.3, gated=True),
    "window": AttentionSpec(4, 2, 32, 32, 0.2, window=7),
    "window_of_blocks": AttentionSpec(6, 2, 24, 20, 0.2, window=200, softcap=30.0),
}


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("splits", [0, 8], ids=["folded", "split"])
def test_attention_and_merge(kv: str, name: str, splits: int) -> None:
    steps = [
        (np.zeros(1, np.int64), np.array([700])),  # one token, late
        (np.zeros(19, np.int64), np.arange(19)),  # a prompt
        (np.zeros(13, np.int64), np.arange(KEY_BLOCK - 6, KEY_BLOCK + 7)),  # a chunk across key blocks
        (np.array([0, 1, 1, 1, 2, 0]), np.array([300, 5, 6, 7, 0, 301])),  # several sequences
    ]
    for slot, pos in steps:
        out, expected = run_attention(ATTENTIONS[name], kv, slot, pos, splits)
        assert_tiles(out, 0, expected, error=2e-5)
