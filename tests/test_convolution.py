"""Gated short convolutions: the kernel against float64, what slots keep of a sequence, and what is accounted for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_determinism import build, forward, hybrid_decoder, prompt
from test_kernels import assert_tiles, empty_tiles, run
from test_parity import write_folder

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.kernels.operands import ACT_F32, ACT_Q8, ACT_Q16, KernelId
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.report.explain import explain
from lapinfer.report.info import info
from lapinfer.runtime.build.sizes import gates_width
from lapinfer.runtime.kv import bytes_per_key, cache_bytes, convolution_state
from lapinfer.spec import ConvolutionSpec, ModelSpec
from lapinfer.text.language_model import LanguageModel

F32 = np.float32


def convolutions_alone() -> ModelSpec:
    """Every layer is a convolution."""
    spec = hybrid_decoder()
    layers = tuple(dataclasses.replace(layer, mixer=ConvolutionSpec(4)) for layer in spec.layers)
    return dataclasses.replace(spec, layers=layers)


def convolve(
    gates: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, slot: np.ndarray, pos: np.ndarray,
    state: np.ndarray, kind: int, unit: int,
) -> np.ndarray:  # fmt: skip
    """The kernel's tiles of rows [T, ≥ 3D] of B, C and x."""
    D, taps = weight.shape
    groups = -(-D // 32)
    padded = np.zeros((taps, 32 * groups), F32)
    padded[:, :D] = weight.T
    biases = np.zeros(32 * groups, F32)
    biases[:D] = 0 if bias is None else bias
    out = empty_tiles(len(pos), groups, kind)
    operands: dict[str, Any] = {
        "x": gates, "x_stride": gates.strides[0], "width": D, "weight": padded, "taps": taps, "pos": pos, "slot": slot,
        "bias": 0 if bias is None else biases, "state": state, "out": out, "groups": groups, "out_kind": kind,
        "unit": unit,
    }  # fmt: skip
    run(KernelId("convolve"), operands, -(-groups // unit), len(pos))
    return out


@pytest.mark.parametrize("kind", [ACT_F32, ACT_Q8, ACT_Q16])
@pytest.mark.parametrize(("D", "taps", "biased"), [(64, 3, False), (40, 3, True), (136, 1, False), (7, 6, True)])
def test_convolve(D: int, taps: int, biased: bool, kind: int) -> None:
    """Two sequences whose tokens alternate, in steps of uneven lengths; what stands behind a row is no number."""
    rng = np.random.default_rng(0)
    T = 23
    weight = rng.standard_normal((D, taps)).astype(F32)
    bias = rng.standard_normal(D).astype(F32) if biased else None
    gates = np.full((2 * T, gates_width(D)), np.nan, F32)
    gates[:, : 3 * D] = rng.standard_normal((2 * T, 3 * D))
    slot, pos = np.tile([1, 0], T), np.repeat(np.arange(T), 2)
    state = np.full_like(convolution_state(ConvolutionSpec(taps), D, 2), np.nan)  # an earlier sequence's
    B, C, x = np.split(gates[:, : 3 * D].astype(np.float64), 3, axis=1)
    expected = np.zeros((2 * T, D))
    for t in range(2 * T):
        for back in range(min(taps, pos[t] + 1)):
            expected[t] += weight[:, taps - 1 - back] * (B * x)[t - 2 * back]
        expected[t] = C[t] * (expected[t] + (0 if bias is None else bias))
    at = 0
    for n in (1, 1, 9, 2, 33):
        out = convolve(gates[at : at + n], weight, bias, slot[at : at + n], pos[at : at + n], state, kind, 1 + at % 3)
        assert_tiles(out, kind, expected[at : at + n])
        at += n
    assert at == 2 * T
    assert not state[:, :, D:].any()


@pytest.mark.parametrize("fmt", ["f32", "q4"])
def test_a_model_without_attention(fmt: str) -> None:
    ids, spec = prompt(40), convolutions_alone()
    expected = forward(ids, fmt, spec=spec)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(forward(ids, fmt, spec=spec, step=3, threads=2), expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_conversations_that_step_back_change_nothing(data: st.DataObject) -> None:
    """Prompts that continue, repeat or leave what a slot holds, against the same prompts on an empty slot."""
    fresh, kept = (LanguageModel(build("q8", spec=hybrid_decoder(), step=8, ctx=64)) for _ in range(2))
    held: list[int] = []
    try:
        for _ in range(data.draw(st.integers(1, 5))):
            shared = data.draw(st.integers(0, len(held)))
            ids = held[:shared] + data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
            ids = ids[:50]
            n = data.draw(st.integers(1, 5))
            fresh.forget()
            expected = fresh.generate(ids, temperature=0, max_tokens=n, logprobs=True)
            found = kept.generate(ids, temperature=0, max_tokens=n, logprobs=True)
            assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
            held = ids + list(found.tokens)
    finally:
        fresh.close()
        kept.close()


def test_what_is_reused_of_a_conversation() -> None:
    """A turn goes on; the last token can be read again; a prompt that leaves earlier is read from its beginning."""
    model = LanguageModel(build("q8", spec=hybrid_decoder(), ctx=64))
    ids = prompt(20)
    try:
        first = model.generate(ids, temperature=0, max_tokens=4)
        held = ids + list(first.tokens[:-1])

        def reused(ids: list[int]) -> int:
            return model.generate(ids, temperature=0, max_tokens=1).timings.reused_tokens

        assert reused([*held, 5, 6]) == len(held)
        held += [5, 6]
        assert reused(held) == len(held) - 1
        assert reused([*held[:-1], 7, 8]) == len(held) - 1
        assert reused(held[:10]) == 0
    finally:
        model.close()


def test_memory_of_states_does_not_grow_with_the_context() -> None:
    spec = hybrid_decoder()
    (attention,) = spec.attentions
    states = 3 * 4 * 96 * (3 + 5)  # slots, bytes, 72 columns in whole groups, positions
    assert cache_bytes(spec, "q8", 3, 300, 8) == 3 * 256 * bytes_per_key(attention, "q8") + states
    model = build(spec=spec, slots=3)
    found = [op.operands["state"] for op in model.runner.plan.ops if op.kernel.kind == "convolve"]
    assert sum(state.nbytes for state in found if isinstance(state, np.ndarray)) == states
    model.close()


def test_a_layer_has_one_mixer() -> None:
    layer = hybrid_decoder().layers[0]
    assert (layer.attention, layer.convolution, layer.window) == (None, ConvolutionSpec(3), 3)
    assert hybrid_decoder().layers[1].convolution is None


def test_info_and_explain_tell_of_convolutions(tmp_path: Path) -> None:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "lfm2_moe-plain.npz")
    folder = write_folder(tmp_path / "folder", config, stored)
    told, *_ = info(str(folder))
    assert told["convolutions"] == {"of 3 tokens": "in 2 layers"}
    assert (told["heads"], told["windows"]) == (4, {"none": "in 1 layers"})
    model = load_model(pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "q8"), LoadOptions(ctx=40))
    text = explain(model)
    model.close()
    rows = {line.split()[0]: line for line in text.split("\n\n")[1].splitlines()[3:]}
    assert {"conv_in", "convolve", "conv_out", "convolution", "attention", "kv"} <= rows.keys()
    assert "48 × 3" in rows["convolve"]
    for line in text.splitlines():
        if line.startswith("predicted"):
            predicted, metered = (word for word in line.split() if word[0].isdigit())
            assert predicted == metered
