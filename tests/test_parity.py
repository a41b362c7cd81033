"""The engine in float32 against transformers, golden logits and the NumPy oracle, through the packed form on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from safetensors.numpy import save_file

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.families import spec_from_config
from lapinfer.loading import load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.packing.reader import read_packed
from lapinfer.runtime.ops import Limits

BOUND = 1e-4
"""max|Δ logit| / max|logit| in float32: sums in another order give 1e-6; a wrong formula 1e-3 or more."""

LONG = 300
"""Tokens that take three blocks of 128 keys."""

WINDOWS = {"mistral-window": 150, "gemma2-plain": 7, "gemma3_text-plain": 40, "phi3-partial": 129, "qwen3-window": 128}
LONG_CASES = [
    "gpt2-plain",
    "llama-bias_mqa",
    "llama-odd",
    "llama-llama3",
    "olmo2-options",
    "smollm3-plain",
    "lfm2-options",
    *WINDOWS,
]


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def write_folder(folder: Path, config: dict[str, Any], stored: dict[str, np.ndarray]) -> Path:
    """A Hugging Face folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors")
    return folder


def run(folder: Path, ids: list[int]) -> np.ndarray:
    """Logits [T, V] of the engine for a Hugging Face folder."""
    packed = pack_calibrated(FolderCheckpoint(folder), folder.parent / "packed", "f32")
    model = load_model(packed, LoadOptions(kv="f32", ctx=len(ids), threads=2))
    try:
        return model.forward(ids)
    finally:
        model.close()


@pytest.mark.parametrize("case", tiny.CASES, ids=str)
def test_as_transformers(case: tiny.Case, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, ids, expected = tiny.make(case, tmp_path)
    assert distance(run(folder, ids), expected) <= BOUND


@pytest.mark.parametrize("case", tiny.CASES, ids=str)
def test_as_oracle_and_golden_logits(case: tiny.Case, tmp_path: Path) -> None:
    config, stored, ids, golden = tiny.read_golden(tiny.GOLDEN / f"{case}.npz")
    got = run(write_folder(tmp_path / "folder", config, stored), ids)
    spec = spec_from_config(config, str(case))
    assert distance(got, reference.forward(spec, reference.load_weights(stored, spec), ids)) <= BOUND
    assert distance(got[-tiny.KEPT :], golden) <= BOUND


@pytest.mark.parametrize("case", [case for case in tiny.CASES if case.routed], ids=str)
def test_experts_are_those_of_the_oracle_and_decoding_changes_no_bit(case: tiny.Case, tmp_path: Path) -> None:
    """Token after token, in small chunks and as one prompt; some experts get no token of a chunk."""
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / f"{case}.npz")
    spec = spec_from_config(config, str(case))
    folder = write_folder(tmp_path / "folder", config, stored)
    weights = read_packed(pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "f32"))[1]
    expected: dict[int, np.ndarray] = {}
    reference.forward(spec, reference.load_weights(stored, spec), ids, routed=expected)
    logits = []
    for step in (len(ids), 5, 1):
        model = Model(spec, weights, Limits(ctx=len(ids), step=step, threads=2, kv="f32"))
        chosen: list[dict[int, np.ndarray]] = []
        rows = []
        for at in range(0, len(ids), step):
            piece = ids[at : at + step]
            zeros, positions = np.zeros(len(piece), np.int64), np.arange(at, at + len(piece))
            rows.append(model.step(piece, zeros, positions, np.ones(len(piece), bool)).values.copy())
            chosen.append({layer: experts.copy() for layer, experts in model.chosen_experts.items()})
        model.close()
        logits.append(np.concatenate(rows))
        for layer, experts in expected.items():
            np.testing.assert_array_equal(np.concatenate([part[layer] for part in chosen]), experts)
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


@pytest.mark.parametrize("name", LONG_CASES)
def test_prompt_of_several_key_blocks_in_chunks(name: str, tmp_path: Path) -> None:
    """Rings of windowed layers are overwritten while a prompt runs in chunks; blocks of keys are folded."""
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{name}.npz")
    config["n_positions" if name.startswith("gpt2") else "max_position_embeddings"] = LONG
    if name in WINDOWS:
        config["sliding_window"] = WINDOWS[name]
    if name.startswith("gpt2"):
        wpe = next(key for key in stored if key.endswith("wpe.weight"))
        stored[wpe] = tiny.random_tensor(wpe, (LONG, stored[wpe].shape[1]), np.random.default_rng(1))
    ids = tiny.prompt(config["vocab_size"], LONG)
    spec = spec_from_config(config, name)
    folder = write_folder(tmp_path / "folder", config, stored)
    weights = read_packed(pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "f32"))[1]
    expected = reference.forward(spec, reference.load_weights(stored, spec), ids)
    for step in (LONG, 64, 11):
        model = Model(spec, weights, Limits(ctx=LONG, step=step, threads=2, kv="f32"))
        assert distance(model.forward(ids), expected) <= BOUND, step
        model.close()
