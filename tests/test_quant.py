"""Formats against plain loops, and the search against simpler ways to quantize."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapinfer.kernels
from lapinfer.checkpoint.gguf_file import TYPES
from lapinfer.errors import CheckpointError
from lapinfer.quant import BAND
from lapinfer.quant.blocks import (
    interleaved_rows,
    pack,
    take_rows,
    unpack,
    unpack_groups,
)
from lapinfer.quant.calibrate import feedback_factors, quantize_with_feedback
from lapinfer.quant.choice import HEADS, MODELS, ROUTERS, matrix_format, narrow_format
from lapinfer.quant.formats import FORMATS, STORED, group_format
from lapinfer.quant.formats.bf16 import to_bf16
from lapinfer.quant.groups import Grouped, GroupFormat
from lapinfer.quant.quantize import quantize
from lapinfer.quant.rows import pack_rows, row_bytes, unpack_rows

shapes = st.tuples(st.integers(1, 300), st.integers(1, 100))


def random(shape, seed=0, scale=0.05):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


LOOPS = ("f32", "f16", "bf16", "q8", "q6", "mxfp4", "q4_1", "q4")


def loop_unpack(format: str, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The layout as docs/formats.md says it, one weight at a time."""
    out = np.zeros(shape, np.float32)
    data, size, head_bytes = packed.tobytes(), FORMATS[format].block_bytes, FORMATS[format].head_bytes
    for R in range(shape[0]):
        place = R // 16 % BAND
        first = R // 16 - place
        width = min(BAND, len(packed) - first)
        heads = first * packed.shape[1]
        head = data[heads + place * head_bytes :][:head_bytes]
        for C in range(shape[1]):
            at = heads + width * head_bytes + (C // 32 * width + place) * size
            block, r, c = data[at : at + size], R % 16, C % 32
            if format == "f32":
                out[R, C] = np.frombuffer(block, np.float32)[16 * c + r]
            elif format == "f16":
                out[R, C] = np.frombuffer(block, np.float16)[16 * c + r]
            elif format == "bf16":
                bits = int.from_bytes(block[2 * (16 * c + r) :][:2], "little")
                out[R, C] = np.array(bits << 16, np.uint32).view(np.float32)
            elif format == "q8":
                scale = np.frombuffer(block, np.float16)[r].astype(np.float32)
                code = np.frombuffer(block, np.int8)[32 + 64 * (c // 4) + 4 * r + c % 4]
                out[R, C] = scale * np.float32(code)
            elif format == "q6":
                low, high = block[16 + 64 * (c // 8) + 4 * r + c % 4], block[272 + 64 * (c // 16) + 4 * r + c % 4]
                code = (low >> 4 if c % 8 >= 4 else low & 15) + 16 * (high >> 2 * (c // 4 % 4) & 3)
                out[R, C] = np.float32(code - 32) * block[r] * np.frombuffer(head, np.float32)[r]
            elif format == "mxfp4":
                byte = block[16 + 64 * (c // 8) + 4 * r + c % 4]
                code = byte >> 4 if c % 8 >= 4 else byte & 15
                value = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code % 8]
                out[R, C] = (value if code < 8 else -value) * 2.0 ** (block[r] - 127)
            else:
                byte = block[(64 if format == "q4_1" else 32) + 64 * (c // 8) + 4 * r + c % 4]
                code = np.float32(byte >> 4 if c % 8 >= 4 else byte & 15)
                if format == "q4_1":
                    scale, minimum = np.frombuffer(block, np.float16)[[r, 16 + r]].astype(np.float32)
                    out[R, C] = scale * code + minimum
                else:
                    unit = np.frombuffer(head, np.float32)[r]
                    out[R, C] = (block[r] * code - 8 * np.float32(block[16 + r])) * unit
    return out


def loop_codes(form: GroupFormat, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Codes as the docstring of lapinfer.quant.groups lays them out, one at a time; uint8."""
    codes = np.zeros(shape, np.uint8)
    data, size = packed.tobytes(), form.block_bytes
    for R in range(shape[0]):
        place = R // 16 % BAND
        first = R // 16 - place
        width = min(BAND, len(packed) - first)
        for C in range(shape[1]):
            block = first * packed.shape[1] + width * form.head_bytes + (C // 32 * width + place) * size
            line, shift = block + size - 64 * sum(form.planes), 0
            for bits in form.planes:
                columns = 8 // bits
                k, i, j = C % 32 // (4 * columns), C % 32 // 4 % columns, C % 4
                byte = data[line + 64 * k + 4 * (R % 16) + j]
                codes[R, C] |= (byte >> bits * i & (1 << bits) - 1) << shift
                line, shift = line + 64 * bits, shift + bits
    return codes


@pytest.mark.parametrize("format", FORMATS)
@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_round_trip_agrees_with_plain_loops(format, shape, seed):
    weights, form = random(shape, seed), FORMATS[format]
    packed = pack(format, weights)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-shape[0] // 16), form.row_block_bytes(shape[1]))
    values = unpack(format, packed, shape)
    if format in LOOPS:
        np.testing.assert_array_equal(values, loop_unpack(format, packed, shape))
    if isinstance(form, GroupFormat):
        grouped = quantize(format, weights)
        np.testing.assert_array_equal(values, grouped.weights())
        unpacked = unpack_groups(format, packed, shape)
        for one, other in zip(fields(unpacked), fields(grouped), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(grouped.codes.view(np.uint8), loop_codes(form, packed, shape))
        if shape[1] >= 8:  # q4's minima are steps of 8 units: too coarse for a few numbers that have one sign
            assert np.abs(values - weights).max() <= form.max_error * np.abs(weights).max()
    else:
        np.testing.assert_allclose(values, weights, rtol=form.max_error, atol=1e-7)


def fields(groups: Grouped) -> list[np.ndarray]:
    return [part for part in (groups.codes, groups.scale, groups.minimum, groups.unit) if part is not None]


@pytest.mark.parametrize("format", [name for name, form in FORMATS.items() if form.row])
@pytest.mark.parametrize("columns", [1, 32, 70])
def test_rows_hold_the_same_numbers_as_blocks(format, columns):
    weights = random((9, columns))
    packed = pack_rows(format, weights)
    assert packed.shape == (9, row_bytes(format, columns))
    np.testing.assert_array_equal(
        unpack_rows(format, packed, columns), unpack(format, pack(format, weights), weights.shape)
    )


def test_names_are_listed_without_numpy():
    code = "import sys; from lapinfer.quant.names import format_names; print(format_names(), 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{sorted(FORMATS)} False"


def test_each_format_has_a_reader():
    readers = Path(lapinfer.kernels.__file__).parent / "formats"
    assert {file.stem for file in readers.glob("[!_]*.py")} == set(FORMATS)


def test_what_formats_say_of_others_is_true():
    assert sorted(MODELS) == sorted(HEADS) == ["large", "small"]
    assert ROUTERS[0] == "f32"
    kinds = [kind for form in FORMATS.values() for kind in form.stored_types]
    assert len(kinds) == len(set(kinds))
    assert {kind for kind in kinds if isinstance(STORED[kind], GroupFormat)} <= {kind for kind, *_ in TYPES.values()}
    for name, form in FORMATS.items():
        assert 0 <= form.id < 256
        assert FORMATS[narrow_format(name)].row is not None
        assert not (form.for_routers and form.grouped)
        assert form.exact_variant is None or FORMATS[form.exact_variant].stored_types


@pytest.mark.parametrize(
    ("quant", "stored", "size", "head", "expected"),
    [
        ("auto", {"bf16"}, "small", False, "q8"),
        ("auto", {"bf16"}, "large", False, "q4"),
        ("auto", {"bf16"}, "large", True, "q6"),
        ("auto", set(), "large", False, "q4"),
        ("auto", {"q8"}, "large", False, "q8"),
        ("auto", {"q4_1", "q8"}, "large", False, "q8"),
        ("auto", {"q4_1"}, "small", False, "q4_1"),
        ("auto", {"q4_1"}, "small", True, "q4_1"),
        ("auto", {"q4"}, "large", True, "q4"),
        ("auto", {"q4", "q6"}, "large", False, "q6"),
        ("auto", {"mxfp4"}, "small", False, "mxfp4"),
        ("auto", {"q4_1", None}, "small", False, "q8"),
        ("q4", {"f32"}, "small", True, "q8"),
        ("q4", {"f32"}, "large", True, "q6"),
        ("q4", {"q8"}, "large", True, "q8"),
        ("q4", {"q4_1"}, "large", False, "q4_1"),
        ("q4", {"q4_1"}, "large", True, "q6"),
        ("q4_1", {"f16"}, "large", True, "q6"),
        ("q6", {"q4_1"}, "large", False, "q6"),
        ("f16", {"q8"}, "large", True, "f16"),
    ],
)
def test_format_of_a_matrix(quant, stored, size, head, expected):
    assert matrix_format(quant, stored, size, head=head) == expected


def test_tables_of_the_docs_are_true():
    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (\d+) \|.*\| (float32|int8, groups of 32) \|$", page, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(FORMATS)
    for name, bits, block_bytes, activation in rows:
        form = FORMATS[name]
        assert (float(bits), int(block_bytes)) == (form.bits, form.block_bytes), name
        assert (activation == "float32") == (form.activation == "f32"), name
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (\d bits?[^|]*) \| ([^|]+) \|$", page, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(name for name, form in FORMATS.items() if form.grouped)
    for name, scalars, planes, head in rows:
        form, words = group_format(name), scalars.split(", ")
        assert ["float16" in word for word in words] == [kind is np.float16 for kind in form.scalars], name
        assert tuple(map(int, re.findall(r"(\d) bits?", planes))) == form.planes, name
        assert head == ("16 float32 units (64 bytes)" if form.units else "–"), name


def test_missing_rows_are_zero():
    for format in FORMATS:
        packed = pack(format, random((17, 32)) + 1)
        assert not unpack(format, packed, (32, 32))[17:].any()


def test_bf16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.array([0x3F808000, 0x3F818000], np.uint32).view("f4")])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_bf16(values), expected)


@given(width=st.integers(1, 200))
@settings(deadline=None)
def test_gate_and_up_alternate_and_come_back(width):
    gate_up = np.arange(1, 2 * width + 1, dtype=np.float32)[:, None]
    order = interleaved_rows(width)
    mixed = take_rows(gate_up, order)
    assert len(mixed) % 64 == 0
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(2 * width))
    for place, row in enumerate(order):
        block, r = divmod(place, 16)
        unit = block // 2 * 16 + r
        assert row == ((unit + width * (block % 2)) if unit < width else -1)
        assert mixed[place, 0] == (gate_up[row, 0] if row >= 0 else 0)


@pytest.mark.parametrize("format", ["q8", "q4_1"])
def test_groups_on_a_grid_come_back_exactly(format):
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.001, 0.1, (33, 3)).astype(np.float16)
    if format == "q8":
        grouped = Grouped(group_format("q8"), rng.integers(-127, 128, (33, 96)).astype(np.int8), scale)
        grouped.codes[:, ::32] = 127
    else:
        codes = rng.integers(0, 16, (33, 96)).astype(np.uint8)
        grouped = Grouped(group_format("q4_1"), codes, scale, (scale * np.float16(-8)).astype(np.float16))
    back = unpack_groups(format, pack(format, grouped), (33, 96))
    for one, other in ((back.codes, grouped.codes), (back.scale, grouped.scale), (back.minimum, grouped.minimum)):
        np.testing.assert_array_equal(one, other)
    weights = grouped.weights()
    found = quantize(format, weights).weights() - weights
    exact = (np.abs(found).reshape(33, 3, 32).max(axis=2) <= 1e-3 * scale).mean()
    # A group that uses neither end of the grid may be missed.
    assert exact > 0.8


@pytest.mark.parametrize("weighted", [False, True])
def test_search_is_never_worse_than_min_and_max(weighted):
    """q4_1, whose scales and minima are of a group alone."""
    x = random((512, 32), 2) ** 3 + random((512, 1), 3)
    importance = np.random.default_rng(4).uniform(0.01, 10, 32).astype(np.float32) if weighted else None
    w = np.ones(32) if importance is None else importance
    minimum = x.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    scale = ((x.max(axis=1, keepdims=True) - x.min(axis=1, keepdims=True)) / 15).astype(np.float16).astype(np.float32)
    plain = np.clip(np.rint((x - minimum) / scale), 0, 15) * scale + minimum
    error = (w * (quantize("q4_1", x, importance).weights() - x) ** 2).sum(axis=1)
    # The two errors are summed in different order.
    assert (error <= (w * (plain - x) ** 2).sum(axis=1) * 1.0001 + 1e-12).all()
    assert error.mean() < 0.9 * (w * (plain - x) ** 2).sum(axis=1).mean()


def test_q4_loses_hardly_more_than_q4_1():
    """Bytes in a row's unit are nearly as good as float16, for rows whose groups are not alike too."""
    x = random((256, 512), 2) * np.exp(random((256, 16), 3, 0.5)).repeat(32, axis=1)
    errors = [((quantize(format, x).weights() - x) ** 2).mean() for format in ("q4", "q4_1")]
    assert errors[0] < 1.03 * errors[1]


def test_important_columns_lose_less():
    x = random((256, 64), 5)
    importance = np.ones(64, np.float32)
    importance[::8] = 100
    error = (quantize("q4", x, importance).weights() - x)[:, ::8]
    assert (error**2).mean() < 0.7 * ((quantize("q4", x).weights() - x)[:, ::8] ** 2).mean()


@pytest.mark.parametrize("format", [name for name, form in FORMATS.items() if form.grouped])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 6e-8, 1e-30, 6e4])
def test_constant_groups(format, value):
    x = np.full((3, 40), value, np.float32)
    rtol = FORMATS[format].max_error if format == "mxfp4" else 0.001  # a power of two and few values, or any scale
    np.testing.assert_allclose(quantize(format, x).weights(), x, rtol=rtol, atol=6e-8)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_row(format, bad):
    x = random((40, 64))
    x[23, 5] = bad
    with pytest.raises(CheckpointError, match="row 23 has NaN or infinite"):
        pack(format, x)


@pytest.mark.parametrize("format", ["f16", *(name for name, form in FORMATS.items() if form.grouped)])
def test_weights_beyond_the_format_are_refused_by_row(format):
    x = random((40, 64))
    x[31, 5] = 1.01 * FORMATS[format].most
    with pytest.raises(CheckpointError, match="row 31 has weights"):
        pack(format, x)


def test_threads_do_not_change_the_result():
    x = random((2000, 96), 6)
    one, two = quantize("q4", x, threads=1), quantize("q4", x, threads=2)
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.scale, two.scale)


@pytest.mark.parametrize("columns", [96, 80])
def test_feedback_keeps_outputs_better(columns):
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((2000, 16)) @ rng.standard_normal((16, columns))
    inputs += 0.1 * rng.standard_normal(inputs.shape)
    covariance = inputs.T @ inputs
    weights = random((60, columns), 8)

    def loss(grouped: Grouped) -> float:
        error = grouped.weights() - weights
        return float(np.einsum("rc,cd,rd->", error, covariance, error))

    fed = quantize_with_feedback("q4", weights, feedback_factors(covariance))
    assert loss(fed) < 0.5 * loss(quantize("q4", weights, np.diag(covariance)))


def test_feedback_refuses_a_covariance_that_is_none():
    with pytest.raises(CheckpointError, match="covariance"):
        feedback_factors(np.full((32, 32), np.nan))
