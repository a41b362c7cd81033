"""Calibration: what the tracer sees is what matrices multiply, and knowing it makes q4 better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tokenizers
from safetensors.numpy import save_file

from lapinfer.calibration import (
    covariances,
    groups_within,
    input_shape,
    pack_calibrated,
    random_tokens,
    second_moments,
    text_tokens,
)
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError, InputError
from lapinfer.loading import convert, load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.packing.reader import PackedFile, read_packed
from lapinfer.quant import ROWS
from lapinfer.quant.blocks import unpack
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.trace import traced
from lapinfer.tensors import tensors

WORDS = [f"w{i}" for i in range(101)]
LAYER = ("qkv", "o", "gate_up", "down")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def write(folder: Path, case: str = "llama-plain", tokenizer: bool = True) -> Path:
    """A golden case's folder with a tokenizer of 101 words, and a text whose words are far from equally frequent."""
    config, stored, _, _ = tiny.read_golden(tiny.GOLDEN / f"{case}.npz")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors")
    if tokenizer:
        words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0")
        made = tokenizers.Tokenizer(words)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))
    ids = np.random.default_rng(3).zipf(1.5, 3000) % 101
    (folder / "text.txt").write_text(" ".join(WORDS[i] for i in ids))
    return folder


def packed(folder: Path, format: str, activations: str = "q8") -> Model:
    target = pack_calibrated(FolderCheckpoint(folder), folder.parent / f"{folder.name}-{format}", format)
    return load_model(target, LoadOptions(threads=2, activations=activations))


def matrix(file: PackedFile, name: str) -> np.ndarray:
    entry = file[name]
    return unpack(str(entry.format), file.tensor(name), (entry.shape[0], entry.shape[1]))


@pytest.mark.parametrize(
    ("format", "activations", "tolerance"), [("f32", "q8", 1e-5), ("q8", "q8", 0.02), ("q8", "q16", 1e-4)]
)
@pytest.mark.parametrize("tokens", [1, 13])
def test_inputs_are_what_matrices_multiply(tmp_path, format, activations, tolerance, tokens):
    model = packed(write(tmp_path / "model"), format, activations)
    ids, zeros = np.arange(tokens) % 101, np.zeros(tokens, np.int64)
    expected = model.step(ids, zeros, np.arange(tokens), np.ones(tokens, bool)).values.copy()
    seen = {}
    with traced(model, lambda op, inputs, experts: seen.update({op.name: inputs.copy()})):
        got = model.step(ids, zeros, np.arange(tokens), np.ones(tokens, bool)).values.copy()
    np.testing.assert_array_equal(got, expected)  # the team's results
    assert set(seen) == {"head", *(f"{i}.{name}" for i in range(2) for name in LAYER)}
    assert isinstance(model.weights, PackedFile)
    head = seen["head"][:, :48] @ matrix(model.weights, "head")[:101].T
    assert np.abs(head - expected).max() <= tolerance * np.abs(expected).max()
    # The first layer's inputs are a norm of embeddings, which is quickly made by hand.
    x = matrix(model.weights, "embed")[ids][:, :48]
    x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * model.weights.tensor("layers.0.attn_norm.weight")
    np.testing.assert_allclose(seen["0.qkv"][:, :48], x, atol=tolerance * np.abs(x).max())
    assert not seen["0.qkv"][:, 48:].any()
    model.close()


def test_moments_are_the_diagonal_of_covariances(tmp_path):
    model = packed(write(tmp_path / "model"), "q8")
    shapes = {"layers.0.qkv": (48,), "layers.1.down": (88,), "head": (48,)}
    matrices = [tensors(model.spec)[name] for name in shapes]
    chunks = random_tokens(model.spec).chunks[:2]
    assert chunks.shape == (2, 64)  # the context of the model
    assert chunks.max() > 90
    told = []
    moments = second_moments(model, chunks, matrices, lambda *args: told.append(args))
    assert told[0] == ("calibrating", 0, 128)
    assert told[-1] == ("calibrating", 128, 128)
    for name, covariance in covariances(model, chunks, matrices, lambda *args: None).items():
        assert covariance.shape == shapes[name] * 2
        np.testing.assert_allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.diag(covariance), moments[name], rtol=1e-4)
        assert moments[name].min() > 0
    model.close()


def test_groups_take_no_more_than_the_limit():
    sizes = {"a": 64, "b": 64, "c": 130, "d": 4, "e": 1000}
    assert list(groups_within(sizes, 130)) == [["a", "b"], ["c"], ["d"], ["e"]]


def output_error(folder: Path, target: Path, inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean squared error of each matrix's outputs relative to their size, by covariances of the inputs."""
    exact = read_packed(pack_calibrated(FolderCheckpoint(folder), folder.parent / "exact", "f32"))[1]
    file, errors = read_packed(target)[1], {}
    for name, covariance in inputs.items():
        weights = matrix(exact, name)
        difference = matrix(file, name) - weights
        errors[name] = np.sum(difference @ covariance * difference) / np.sum(weights @ covariance * weights)
    return errors


def test_calibration_lessens_the_error_of_outputs(tmp_path, monkeypatch):
    folder = write(tmp_path / "model")
    model = packed(folder, "q8")
    spec = model.spec
    matrices = [tensors(spec)[f"layers.{i}.{name}"] for i in range(2) for name in LAYER]
    text = text_tokens(spec, folder, folder / "text.txt")
    assert text.label.startswith("text:")
    inputs = covariances(model, text.chunks, matrices, lambda *args: None)
    model.close()
    random = convert(folder, tmp_path / "random", "q4")
    calibrated = convert(folder, tmp_path / "calibrated", "q4", calibrate=folder / "text.txt")
    assert read_packed(random)[1].metadata["calibration"] == "random"
    assert read_packed(calibrated)[1].metadata["calibration"] == text.label
    monkeypatch.setattr("lapinfer.calibration.second_moments", lambda model, chunks, matrices, progress: {
        tensor.name: np.ones(input_shape(tensor), np.float32) for tensor in matrices
    })  # fmt: skip
    plain = convert(folder, tmp_path / "plain", "q4")
    errors = [output_error(folder, target, inputs) for target in (plain, random, calibrated)]
    means = [np.mean(list(e.values())) for e in errors]
    assert means[2] < 0.8 * means[0]
    assert means[1] < means[0]
    assert all(errors[2][name] < errors[0][name] for name in inputs)


def test_wide_matrices_are_weighed_by_the_text(tmp_path, monkeypatch):
    folder = write(tmp_path / "model")
    monkeypatch.setattr("lapinfer.calibration.FEEDBACK_COLUMNS", 48)
    seen = []
    real = covariances
    monkeypatch.setattr(
        "lapinfer.calibration.covariances",
        lambda model, chunks, matrices, progress: (
            seen.extend(t.name for t in matrices) or real(model, chunks, matrices, progress)
        ),
    )
    target = convert(folder, tmp_path / "packed", "q4", calibrate=folder / "text.txt")
    assert sorted(seen) == sorted(f"layers.{i}.{name}" for i in range(2) for name in LAYER if name != "down")
    model = load_model(target)
    assert np.isfinite(model.forward([1, 2, 3])).all()
    model.close()


def test_a_packing_never_goes_on_with_another_calibration(tmp_path, monkeypatch):
    folder = write(tmp_path / "model")
    expected = convert(folder, tmp_path / "expected", "q4", calibrate=folder / "text.txt")

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "packing" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_calibrated(FolderCheckpoint(folder), tmp_path / "packed", "q4", progress=interrupt)
    assert len((tmp_path / "packed" / "model.safetensors.journal").read_text().splitlines()) > 3
    assert not list((tmp_path / "home" / "calibration").iterdir())
    target = convert(folder, tmp_path / "packed", "q4", calibrate=folder / "text.txt")
    assert (target / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_texts_that_do_not_serve(tmp_path):
    folder, bare = write(tmp_path / "model"), write(tmp_path / "bare", tokenizer=False)
    (tmp_path / "short").write_text("w1 w2 w3")
    (tmp_path / "binary").write_bytes(b"caf\xe9")
    for source, text, error, said in (
        (folder, tmp_path / "short", InputError, "has 3 tokens, calibration needs at least 128"),
        (folder, tmp_path / "binary", InputError, "not UTF-8"),
        (folder, tmp_path / "absent", InputError, "cannot be read"),
        (bare, folder / "text.txt", CheckpointError, "has no tokenizer.json"),
    ):
        with pytest.raises(error, match=said) as caught:
            convert(source, tmp_path / "packed", "q4", calibrate=text)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "packed").exists()
    with pytest.raises(InputError, match="is for q4; quant is q8"):
        convert(folder, tmp_path / "packed", "q8", calibrate=folder / "text.txt")


def expert_matrices(folder: Path, name: str) -> np.ndarray:
    """A matrix of each expert, [E, R, C] as packed."""
    file = read_packed(folder)[1]
    bank, (experts, rows, columns) = file.tensor(name.rsplit(".", 1)[0]), file.shape(name)
    at, format = file.offset(name), str(file.format(name))
    size = -(-rows // ROWS) * FORMATS[format].row_block_bytes(columns)
    stored = bank[:, at : at + size].reshape(experts, -1, FORMATS[format].row_block_bytes(columns))
    return np.stack([unpack(format, matrix, (rows, columns)) for matrix in stored])


@pytest.mark.parametrize("case", ["mixtral-plain", "granitemoeshared-plain"])
def test_experts_are_calibrated_by_their_own_tokens(tmp_path, case, monkeypatch):
    folder = write(tmp_path / "model", case)
    model = packed(folder, "q8")
    layers = [f"layers.{i}.experts" for i, layer in enumerate(model.spec.layers) if layer.feed_forward.router]
    ff, hidden = model.spec.layers[-1].feed_forward, model.spec.hidden
    shapes = {f"{bank}.down": (ff.experts, ff.width) for bank in layers}
    shapes |= {f"{bank}.gate_up": (hidden,) for bank in layers}
    chunks = text_tokens(model.spec, folder, folder / "text.txt").chunks
    matrices = [tensors(model.spec)[name] for name in shapes]
    inputs = covariances(model, chunks, matrices, lambda *args: None)
    moments = second_moments(model, chunks, matrices, lambda *args: None)
    model.close()
    for name, covariance in inputs.items():
        assert covariance.shape == (*shapes[name], shapes[name][-1])
        np.testing.assert_allclose(np.diagonal(covariance, axis1=-2, axis2=-1), moments[name], rtol=1e-4)
    fed = convert(folder, tmp_path / "fed", "q4", calibrate=folder / "text.txt")
    monkeypatch.setattr("lapinfer.calibration.FEEDBACK_BANK", 0)
    half = convert(folder, tmp_path / "half", "q4", calibrate=folder / "text.txt")
    monkeypatch.setattr("lapinfer.calibration.FEEDBACK_COLUMNS", 0)
    weighed = convert(folder, tmp_path / "weighed", "q4", calibrate=folder / "text.txt")
    exact = pack_calibrated(FolderCheckpoint(folder), tmp_path / "exact", "f32")
    ratios = []
    for name, covariance in inputs.items():
        whole = expert_matrices(exact, name)
        errors = []
        for target in (weighed, half, fed):
            difference = expert_matrices(target, name) - whole
            errors.append(float(np.sum(difference @ covariance * difference)))
        assert errors[2] < errors[0], name
        ratios.append(errors[2] / errors[0])
        # Too large a bank: its second matrices are weighed, its first ones, which share one covariance, still fed back.
        assert errors[1] == errors[0 if name.endswith(".down") else 2]
    assert np.mean(ratios) < 0.9


@pytest.mark.parametrize("case", ["gpt2-plain", "gemma3_text-options", "qwen3-plain", "phi3-plain"])
def test_every_kind_of_matrix_is_found(tmp_path, case):
    folder = write(tmp_path / "model", case, tokenizer=False)
    model = packed(folder, "q4")
    assert isinstance(model.weights, PackedFile)
    seen = []
    names = [n for n in model.weights.names() if model.weights.format(n) == "q4"]
    with traced(model, lambda op, inputs, experts: seen.append(f"layers.{op.layer}.{op.label}")):
        model.prefill([1, 2, 3])
    assert sorted(names) == sorted(name for name in seen if "-1" not in name)
    model.close()
