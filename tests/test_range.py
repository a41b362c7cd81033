"""Numbers out of a format's range: what the cache, activations and logits do with them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tiny
from random_weights import RandomWeights
from test_determinism import decoder, hybrid_decoder, prompt, recurrent_decoder, routed_decoder
from test_parity import distance, write_folder

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError, InputError
from lapinfer.kernels.operands import KV_KINDS
from lapinfer.loading import load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.packing.reader import read_packed
from lapinfer.quant.blocks import pack, unpack
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.range import SLACK, RangeError, check_small
from lapinfer.report.costs import Costs
from lapinfer.report.explain import explain
from lapinfer.report.timing import Watch
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.widening import widen
from lapinfer.spec import AttentionSpec, ModelSpec

IDS = prompt(40)
Change = Callable[[dict[str, np.ndarray]], None]


def model_of(spec: ModelSpec, change: Change, kv: str, notes: list[str] | None = None, step: int = 16) -> Model:
    """A model of float32 weights, some of them changed."""
    limits = Limits(64, slots=2, step=step, kv=kv)  # type: ignore[arg-type]
    return Model(
        spec,
        RandomWeights(spec, "f32", change=change),
        limits,
        name="m",
        notice=None if notes is None else notes.append,
    )


def forward(spec: ModelSpec, change: Change, kv: str, notes: list[str] | None = None, step: int = 16) -> np.ndarray:
    model = model_of(spec, change, kv, notes, step)
    try:
        return model.forward(IDS)
    finally:
        model.close()


def times(rows: slice, factor: float, back: float = 1.0) -> Change:
    """Values (or keys) of the second layer times a factor; what reads them times `back`."""

    def change(values: dict[str, np.ndarray]) -> None:
        values["layers.1.qkv"][rows] *= factor
        values["layers.1.o"][:] *= back

    return change


HEADS, KV_HEADS, K, V = 6, 2, 20, 24
KEY_ROWS = slice(HEADS * K, (HEADS + KV_HEADS) * K)
VALUE_ROWS = slice((HEADS + KV_HEADS) * K, None)
LARGE, SMALL = times(VALUE_ROWS, 1e6, 1e-6), times(VALUE_ROWS, 1e-7, 1e7)


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("change", [LARGE, SMALL], ids=["large", "small"])
def test_values_out_of_range_are_kept_in_a_wider_cache(kv: str, change: Change) -> None:
    """Only the layer that needs it; tokens that the slots hold already keep their place."""
    notes: list[str] = []
    got = forward(decoder(), change, kv, notes)
    expected = forward(decoder(), change, "f32")
    assert np.abs(got - expected).max() < (0.05 if kv == "q8" else 0.005) * np.abs(expected).max()
    said = [note for note in notes if "layer 1: values of" in note]
    assert len(said) == (kv == "f16")
    assert not any("layer 0" in note for note in notes)


def test_a_widened_layer_gives_the_bits_of_float32_from_there_on() -> None:
    """The step is run again: nothing of what did not fit is left."""
    first = forward(decoder(window=None), LARGE, "f16")
    again = forward(decoder(window=None), LARGE, "f16", step=7)
    np.testing.assert_array_equal(first, again)


def test_costs_know_a_widened_layer() -> None:
    """What is predicted, metered and shown is of the caches as they are then."""
    model = model_of(decoder(), LARGE, "f16")
    before = Costs.of(model).touched([40])["kv"]
    model.prefill(IDS)
    assert model.kv == ["f16", "f32"]
    watch = Watch(model)
    watch.step(np.array([1]), np.array([0]), np.array([40]))
    predicted = Costs.of(model).touched([40])
    metered = {key.removeprefix("bytes_"): n for key, n in watch.meter.totals().items() if key.startswith("bytes_")}
    assert predicted == metered
    assert predicted["kv"] > before
    assert "KV f16 (1 layer) and f32 (1 layer)" in explain(model)
    model.close()


def outlier(values: dict[str, np.ndarray]) -> None:
    """A key column that is the same for all keys, far above the others; queries do not look at it."""
    values["layers.1.qkv.bias"][KEY_ROWS][K - 1] = 2e5
    for head in range(HEADS):
        values["layers.1.qkv"][head * K + K - 1] = 0
        values["layers.1.qkv.bias"][head * K + K - 1] = 0


def biased() -> ModelSpec:
    spec = decoder(window=None)
    mixer = dataclasses.replace(spec.layers[0].mixer, qkv_bias=True, rope=None)
    return dataclasses.replace(spec, layers=tuple(dataclasses.replace(layer, mixer=mixer) for layer in spec.layers))


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_an_outlier_leaves_its_neighbours(kv: str) -> None:
    """Keys of 2e5 beside keys of 1, as with Qwen2's biases: none of both caches holds them."""
    notes: list[str] = []
    got = forward(biased(), outlier, kv, notes)
    expected = forward(biased(), outlier, "f32")
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    assert any("layer 1: keys of 2.0e+05" in note and f"in a cache of {kv}" in note for note in notes)


@pytest.mark.parametrize("spec", [hybrid_decoder(), recurrent_decoder()], ids=["convolutions", "recurrences"])
def test_where_a_step_cannot_be_run_again_the_option_is_named(spec: ModelSpec) -> None:
    """A convolution, or a recurrence, has overwritten what it reads."""

    def change(values: dict[str, np.ndarray]) -> None:
        values["layers.1.qkv"][VALUE_ROWS] *= 1e7

    with pytest.raises(InputError, match=r"m: layer 1: values of .* too large in a cache of f16; .* --kv f32"):
        forward(spec, change, "f16")


@pytest.mark.parametrize(
    "spec", [decoder(), routed_decoder(), routed_decoder(latent=True)], ids=["dense", "experts", "mla"]
)
@pytest.mark.parametrize(
    ("kv", "tensor", "place"),
    [("f32", "layers.1.o", "layer 1"), ("f16", "layers.0.down", "down of layer 0"),
     ("q8", "layers.0.down", "down of layer 0"), ("f16", "norm.weight", "")],
)  # fmt: skip
def test_no_logits_without_a_number(spec: ModelSpec, kv: str, tensor: str, place: str) -> None:
    """Products beyond float32 are an error that names where they began; the model goes on afterwards."""

    def change(values: dict[str, np.ndarray]) -> None:
        values[tensor][:] *= 1e38

    model = model_of(spec, change, kv)
    with pytest.raises(CheckpointError, match=rf"not finite numbers; the first that were not came from .*{place}"):
        model.forward(IDS)
    with pytest.raises(CheckpointError, match="not finite"):
        model.prefill(IDS)
    model.close()


@pytest.mark.parametrize("scale", [1e5, 1e25, 1e-12])
def test_a_residual_stream_of_any_size_is_normed(scale: float) -> None:
    """Squares of 1e25 are beyond float32; transformers gives zeros there."""
    spec = decoder()

    def change(values: dict[str, np.ndarray], scale: float = scale) -> None:
        for name in values:
            if name.endswith((".o", ".down")) or name == "embed":
                values[name][:] *= scale

    def plain(values: dict[str, np.ndarray]) -> None:
        change(values, 1e3)

    got, expected = forward(spec, change, "f32"), forward(spec, plain, "f32")
    assert np.abs(got - expected).max() < (1e-3 if scale > 1 else 2) * np.abs(expected).max()


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_scores_beyond_float16_are_sums_of_float32(kv: str) -> None:
    """Queries and keys of hundreds, as phi-2's, fit a cache of float16; their products do not."""
    spec = decoder(window=None)

    def change(values: dict[str, np.ndarray]) -> None:
        values["layers.1.qkv"][: KEY_ROWS.start] *= 300
        values["layers.1.qkv"][KEY_ROWS] *= 300

    got, expected = forward(spec, change, kv, notes := []), forward(spec, change, "f32")
    assert np.isfinite(got).all()
    assert not notes
    if kv == "f16":  # scores so large leave one key: a code of q8 more or less may make it another
        assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_a_latent_in_a_q8_cache_is_what_it_is_in_float32() -> None:
    spec = routed_decoder(latent=True)
    got, expected = (forward(spec, lambda values: None, kv) for kv in ("q8", "f32"))
    lost = np.abs(got - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(lost) < 0.02
    assert (lost > 0.05).sum() <= 2  # a token that all but had another expert


@pytest.mark.parametrize("name", ["q8"])
def test_a_gate_times_up_beyond_float16(name: str) -> None:
    """255 times 262, as in a layer of Llama 2, and more: activations have scales, or are float32."""
    spec = decoder()

    def change(values: dict[str, np.ndarray]) -> None:
        values["layers.1.gate_up"] *= 300
        values["layers.1.down"] *= 1e-5

    logits = []
    for fmt in (name, "f32"):
        model = Model(spec, RandomWeights(spec, fmt, change=change), Limits(64, slots=2, step=16), name="m")
        logits.append(model.forward(IDS))
        model.close()
    lost = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
    assert lost < {"q8": 0.1, "q4": 0.8, "bf16": 0.1, "f16": 0.05}[name]


# Packing


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_every_number_of_a_16_bit_format_is_kept(name: str) -> None:
    """The smallest, below the normal ones, too."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else bits.view(np.float16).astype("f4")
    values = np.where(np.isfinite(values), values, 0).reshape(64, 1024)
    assert unpack(name, pack(name, values), values.shape).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-6, 1.0, 1e4, 1e8, 1e12])
def test_a_format_keeps_what_it_promises_or_says_so(name: str, scale: float) -> None:
    """Rows of every size: the error that a format promises, or RangeError."""
    form = FORMATS[name]
    weights = (np.random.default_rng(0).standard_normal((16, 64)) * scale).astype(np.float32)
    outside = None
    try:
        restored = unpack(name, pack(name, weights), weights.shape)
        check_small(form, weights, lambda: restored)
        lost = np.abs(weights - restored).max(axis=1)
        assert (lost <= SLACK * form.max_error * np.abs(weights).max(axis=1)).all()
    except RangeError as error:
        outside = str(error)
    if outside is not None:
        assert f"too {'large' if scale > 1 else 'small'} for {name}" in outside
        assert scale != 1
        assert form.wider in ("bf16", "f32")


def test_rows_of_tokens_that_were_never_trained_widen_nothing() -> None:
    form, weights = FORMATS["q8"], np.ones((32, 32), np.float32)
    weights[3] = 1e-9
    restored = np.where(weights < 1, 0, weights)
    check_small(form, weights, lambda: restored, by_token=True)
    with pytest.raises(RangeError, match=r"row 3 has no weight above 1.0e-09, too small for q8"):
        check_small(form, weights, lambda: restored)


@pytest.mark.parametrize(("quant", "wider"), [("q8", "bf16"), ("f16", "f32"), ("q4", None)])
def test_a_matrix_out_of_range_becomes_a_wider_one(tmp_path: Path, quant: str, wider: str | None) -> None:
    """And no other: what a norm makes good is a sound model (logits: transformers' of the model as it was)."""
    config, stored, ids, golden = tiny.read_golden(tiny.GOLDEN / "llama-plain.npz")
    for name, array in stored.items():
        if name.startswith("model.layers.0."):
            factor = 1e6 if "input_layernorm" in name else 1e-6 if any(f"{c}_proj" in name for c in "qkv") else 1
            stored[name] = array * np.float32(factor)
    notes: list[str] = []
    folder = write_folder(tmp_path / "folder", config, stored)
    packed = pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", quant, notice=notes.append)
    formats = {name: read_packed(packed)[1].format(f"layers.{name}") for name in ("0.qkv", "0.o", "1.qkv")}
    assert formats == {"0.qkv": wider or quant, "0.o": quant, "1.qkv": quant}
    assert [("kept in" in note, "layers.0.qkv" in note) for note in notes] == [(True, True)] * bool(wider)
    with closing(load_model(packed, LoadOptions(ctx=len(ids), threads=1))) as model:
        assert distance(model.forward(ids)[-tiny.KEPT :], golden) < {"q8": 0.05, "f16": 0.005, "q4": 0.5}[quant]


def test_what_a_cache_holds_already_decides_how_wide_it_gets() -> None:
    """A small number asks for float16, which earlier positions are too large for."""
    model = model_of(decoder(), lambda values: None, "q8")
    model.forward(IDS[:5])
    ops = [op for op in model.runner.plan.ops if op.layer == 0 and "v_scale" in op.operands]
    for op in ops:
        op.operands["v_scale"][:] = 0x4500  # bfloat16 of 2,048
    attention = model.spec.layers[0].mixer
    assert isinstance(attention, AttentionSpec)
    with warnings.catch_warnings(action="error"):
        assert widen(model.runner, 0, attention, "f16") == "f32"
    held = [op.operands["v_cache"] for op in model.runner.plan.ops if op.layer == 0 and "v_cache" in op.operands]
    assert all(np.isfinite(array).all() and np.abs(array).max() > 65504 for array in held)
    model.close()
