"""Recurrences: each kernel against float64, what slots keep of a sequence, and what is accounted for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_determinism import build, forward, prompt, recurrent_decoder
from test_kernels import assert_tiles, empty_tiles, run
from test_parity import write_folder

from lapinfer.kernels.operands import ACT_F32, ACT_Q8, ACT_Q16, STATE_COLUMNS, KernelId
from lapinfer.report.info import info
from lapinfer.runtime.kv import bytes_per_key, cache_bytes, inputs_of_convolution, state_blocks, states
from lapinfer.spec import ModelSpec, NormSpec, RecurrenceSpec
from lapinfer.text.language_model import LanguageModel

F32 = np.float32
NORM = NormSpec("rms", 1e-5)
DELTA = RecurrenceSpec("delta", 4, 6, 3, 17, 40, NORM, 40, norm_shared=True)
SPACE = RecurrenceSpec("state_space", 4, 4, 2, 16, 24, NORM, 48, gate_first=True, least_step=0.01, most_step=1.0)
RULES = pytest.mark.parametrize("spec", [DELTA, SPACE], ids=["delta", "state space"])
STEPS = (1, 1, 9, 2, 33)
T = sum(STEPS)
SLOT, POS = np.tile([1, 0], T // 2), np.repeat(np.arange(T // 2), 2)
"""Two sequences whose tokens alternate."""


def rows_of(spec: RecurrenceSpec, seed: int = 0) -> np.ndarray:
    """Rows (q, k, v, z, a, b) of T tokens; what stands behind a row is no number."""
    rows = np.full((T, spec.channels + spec.values + 2 * spec.heads + 40), np.nan, F32)
    width = spec.channels + spec.values + spec.scalars
    rows[:, :width] = np.random.default_rng(seed).standard_normal((T, width))
    return rows


def padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, -len(values) % 32)).astype(F32)


def operands_of(spec: RecurrenceSpec, rows: np.ndarray) -> dict[str, Any]:
    return {
        "x": rows, "x_stride": rows.strides[0], "heads": spec.heads, "key_heads": spec.key_heads, "k_dim": spec.k_dim,
        "scalars_at": 4 * (spec.channels + spec.values), "delta": int(spec.rule == "delta"),
    }  # fmt: skip


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(("width", "taps", "biased"), [(64, 4, False), (40, 2, True), (136, 1, False), (7, 6, True)])
def test_convolve_silu(width: int, taps: int, biased: bool) -> None:
    """In steps of uneven lengths; columns behind the width are left as they are."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((taps, width)).astype(F32), rng.standard_normal((T, width + 20)).astype(F32)
    bias = rng.standard_normal(width).astype(F32) if biased else np.zeros(width, F32)
    expected = x.astype(np.float64)
    for t in range(T):
        seen = [weight[taps - 1 - back] * x[t - 2 * back, :width] for back in range(min(taps, POS[t] + 1))]
        expected[t, :width] = silu(np.sum(seen, axis=0, dtype=np.float64) + bias)
    state = np.full_like(inputs_of_convolution(width, taps, 2), np.nan)  # an earlier sequence's
    wide = np.stack([padded(row) for row in weight])
    at = 0
    for n in STEPS:
        unit, piece = 1 + at % 3, x[at : at + n]
        operands: dict[str, Any] = {
            "x": piece, "x_stride": x.strides[0], "width": width, "weight": wide, "bias": padded(bias) if biased else 0,
            "taps": taps, "pos": POS[at : at + n], "slot": SLOT[at : at + n], "state": state, "unit": unit,
            "groups": wide.shape[1] // 32,
        }  # fmt: skip
        run(KernelId("convolve_silu"), operands, -(-wide.shape[1] // (32 * unit)), n)
        at += n
    np.testing.assert_allclose(x, expected, rtol=2e-6, atol=2e-6)
    assert not state[:, :, width : -(-width // 16) * 16].any()


@RULES
def test_rates(spec: RecurrenceSpec) -> None:
    rows, H, C = rows_of(spec), spec.heads, spec.channels + spec.values
    rows[:4, C : C + H] *= 30  # softplus far from zero, and near
    before = rows.astype(np.float64)
    rng = np.random.default_rng(1)
    decay, step = rng.uniform(0.1, 4, H), rng.standard_normal(H)
    operands = operands_of(spec, rows) | {"decay": padded(decay), "step": padded(step)}
    run(KernelId("rates"), operands | {"least": spec.least_step, "most": spec.most_step or np.inf}, -(-T // 8), T)
    rate = np.logaddexp(0, before[:, C : C + H] + step)
    if spec.rule == "delta":
        expected = 1 / (1 + np.exp(-before[:, C + H : C + 2 * H]))
        heads = before[:, : 2 * spec.keys].reshape(T, 2 * spec.key_heads, spec.k_dim)
        heads = heads / np.sqrt((heads**2).sum(-1, keepdims=True) + 1e-6)
        heads[:, : spec.key_heads] /= np.sqrt(spec.k_dim)
        before[:, : 2 * spec.keys] = heads.reshape(T, -1)
    else:
        expected = rate = np.clip(rate, spec.least_step, spec.most_step)
    np.testing.assert_allclose(rows[:, C : C + H], np.exp(-decay * rate), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(rows[:, C + H : C + 2 * H], expected, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(rows[:, :C], before[:, :C], rtol=2e-6)


@RULES
def test_recur(spec: RecurrenceSpec) -> None:
    """In steps of uneven lengths, over what earlier sequences have left; only values are overwritten."""
    rows, H, k, v = rows_of(spec), spec.heads, spec.k_dim, spec.v_dim
    rng = np.random.default_rng(1)
    C = spec.channels + spec.values
    rows[:, C : C + 2 * H] = rng.uniform(0, 1, (T, 2 * H))
    rows[:, : 2 * spec.keys] /= np.sqrt(k)
    skip = rng.standard_normal(H)
    expected = rows.astype(np.float64)
    S = np.zeros((2, H, k, v))
    for t, slot in enumerate(SLOT):
        keep, write = expected[t, C : C + H], expected[t, C + H : C + 2 * H]
        for h in range(H):
            at = h // (H // spec.key_heads) * k
            q, key = expected[t, at : at + k], expected[t, spec.keys + at : spec.keys + at + k]
            value = expected[t, 2 * spec.keys + h * v : 2 * spec.keys + (h + 1) * v]
            S[slot, h] *= keep[h]
            new = value - S[slot, h].T @ key if spec.rule == "delta" else value
            S[slot, h] += np.outer(key, write[h] * new)
            out = S[slot, h].T @ q + (skip[h] * value if spec.rule == "state_space" else 0)
            value[:] = out
    kept = np.full_like(states(spec, 2), np.nan)
    at = 0
    for n in STEPS:
        operands = operands_of(spec, rows[at : at + n]) | {
            "v_dim": v, "blocks": state_blocks(spec), "skip": padded(skip) if spec.rule == "state_space" else 0,
            "pos": POS[at : at + n], "slot": SLOT[at : at + n], "states": kept,
        }  # fmt: skip
        run(KernelId("recur"), operands, H, n)
        at += n
    np.testing.assert_allclose(rows, expected, rtol=2e-5, atol=2e-6)
    last = kept[:, (T // 2 - 1) % 2].swapaxes(2, 3).reshape(2, H, k, -1)
    np.testing.assert_allclose(last[..., :v], S, rtol=2e-5, atol=2e-6)
    assert not last[..., v:].any()


@pytest.mark.parametrize("kind", [ACT_F32, ACT_Q8, ACT_Q16])
@pytest.mark.parametrize(("spec", "norm_width"), [(DELTA, 40), (SPACE, 48), (SPACE, 0), (DELTA, 15)])
def test_gated_norm(spec: RecurrenceSpec, norm_width: int, kind: int) -> None:
    rows, width, y_at = rows_of(spec), spec.values, 2 * spec.keys
    y, z = rows[:, y_at : y_at + width].astype(np.float64), rows[:, y_at + width : y_at + 2 * width].astype(np.float64)
    weight = np.random.default_rng(1).standard_normal(width)
    expected = y * silu(z) if spec.gate_first else y
    if norm_width:
        parts = expected.reshape(T, -1, norm_width)
        parts = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)
        expected = parts.reshape(T, width) * weight.astype(F32)
    expected = expected if spec.gate_first else expected * silu(z)
    groups = -(-width // 32)
    out = empty_tiles(T, groups, kind)
    operands: dict[str, Any] = {
        "x": rows, "x_stride": rows.strides[0], "y_at": 4 * y_at, "z_at": 4 * (y_at + width), "width": width,
        "gate_first": int(spec.gate_first), "norm_width": norm_width, "weight": padded(weight), "eps": 1e-5, "out": out,
        "groups": groups, "out_kind": kind,
    }  # fmt: skip
    run(KernelId("gated_norm"), operands, -(-T // 8), T)
    assert_tiles(out, kind, expected, error=4e-6)


def alone() -> ModelSpec:
    """Every layer is a recurrence."""
    spec = recurrent_decoder()
    layers = tuple(dataclasses.replace(layer, mixer=layer.recurrence or DELTA) for layer in spec.layers)
    return dataclasses.replace(spec, layers=layers)


def test_a_model_without_attention() -> None:
    ids, spec = prompt(40), alone()
    expected = forward(ids, "q4", spec=spec)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(forward(ids, "q4", spec=spec, step=3, threads=2), expected)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_sequence_has_the_same_bits_in_any_pieces(data: st.DataObject) -> None:
    ids = prompt(data.draw(st.integers(1, 60)), data.draw(st.integers(0, 5)))
    model = build("q8", spec=alone(), slots=2, threads=data.draw(st.integers(1, 3)))
    try:
        expected = model.forward(ids)
        at = 0
        while at < len(ids):
            n = data.draw(st.integers(1, len(ids) - at))
            got = model.prefill(ids[at : at + n], 1, at).values[0]
            np.testing.assert_array_equal(got, expected[at + n - 1])
            if data.draw(st.booleans()):  # the last token is read again
                np.testing.assert_array_equal(model.prefill(ids[at + n - 1 : at + n], 1, at + n - 1).values[0], got)
            at += n
    finally:
        model.close()


def test_what_is_reused_of_a_conversation() -> None:
    """A turn goes on; the last token can be read again; a prompt that leaves earlier is read from its beginning."""
    model = LanguageModel(build("q8", spec=recurrent_decoder(), ctx=64))
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
    spec = recurrent_decoder()
    (attention,) = spec.attentions
    kept = 0
    for recurrence, columns, channels in ((spec.layers[0].recurrence, 64, 352), (spec.layers[2].recurrence, 32, 160)):
        assert recurrence is not None
        kept += 4 * channels * recurrence.kernel + 2 * 4 * recurrence.heads * recurrence.k_dim * columns
    assert cache_bytes(spec, "q8", 3, 300, 8) == 3 * (256 * bytes_per_key(attention, "q8") + kept)
    model = build(spec=spec, slots=3)
    found = [op.operands[name] for op in model.runner.plan.ops for name in ("state", "states") if name in op.operands]
    assert sum(array.nbytes for array in found if isinstance(array, np.ndarray)) == 3 * kept
    model.close()
    assert STATE_COLUMNS == 32


def test_info_tells_of_recurrences(tmp_path: Path) -> None:
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / "qwen3_next-plain.npz")
    told, *_ = info(str(write_folder(tmp_path / "folder", config, stored)))
    assert told["recurrences"] == {"delta rule, 4 states of 16 x 24": "in 2 layers"}
    assert (told["heads"], told["windows"]) == (4, {"none": "in 1 layers"})
