"""Weights that other tools have quantized: what they mean, what they become, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import CONFIG, LAYER, SCHEMES, SHAPES, D, Scheme, save, write
from safetensors.numpy import save_file

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint.adapted import adapted
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.quantized import METHODS
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families.quantized import READ
from lapinfer.packing.reader import read_packed
from lapinfer.quant.blocks import unpack
from lapinfer.report.known import known

BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
Q = f"{LAYER}self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def packed_matrix(folder: Path, name: str) -> tuple[str, np.ndarray]:
    """The format of a packed matrix, and its numbers."""
    file = read_packed(folder)[1]
    entry = file[name]
    return str(entry.format), unpack(str(entry.format), file.tensor(name), (entry.shape[0], entry.shape[1]))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_matrices_are_what_was_written(scheme: Scheme, tmp_path: Path) -> None:
    checkpoint, weights = write(tmp_path / "model", scheme)
    assert checkpoint.config["model_type"] == "llama"
    assert set(checkpoint.names()) == weights.keys()
    for module, shape in SHAPES.items():
        name = f"{LAYER}{module}.weight"
        assert checkpoint.shape(name) == shape
        assert checkpoint.stored_as(name) == scheme.kind
        assert np.array_equal(checkpoint.read(name), weights[name])
        assert np.array_equal(checkpoint.read(name, 5, 21), weights[name][5:21])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_they_are_kept_or_become_what_is_nearest(scheme: Scheme, tmp_path: Path) -> None:
    checkpoint, weights = write(tmp_path / "model", scheme)
    folder = pack_calibrated(checkpoint, tmp_path / "packed")
    for ours, modules in (("qkv", ("q", "k", "v")), ("o", ("o",))):
        format, kept = packed_matrix(folder, f"layers.0.{ours}")
        assert format == scheme.packed
        stored = np.concatenate([weights[f"{LAYER}self_attn.{each}_proj.weight"] for each in modules])
        kept = kept[: len(stored)]
        lost = float(np.linalg.norm(kept - stored) / np.linalg.norm(stored))
        # 1e-7: scale · code + minimum in float32 is rounded otherwise than scale · (code − zero)
        assert lost <= max(scheme.loss, 1e-7)
        assert scheme.loss == 0 or lost > 0


def test_a_model_of_them_is_that_of_its_floats(tmp_path: Path) -> None:
    checkpoint, weights = write(tmp_path / "model", BY_NAME["awq-64"])
    (tmp_path / "floats").mkdir()
    (tmp_path / "floats/config.json").write_text(json.dumps(CONFIG))
    save_file(weights, tmp_path / "floats/model.safetensors")
    one = read_packed(pack_calibrated(checkpoint, tmp_path / "one", "f32"))[1]
    other = read_packed(pack_calibrated(FolderCheckpoint(tmp_path / "floats"), tmp_path / "other", "f32"))[1]
    for name in other.names():
        assert np.array_equal(one.tensor(name), other.tensor(name))


def test_adapters_are_merged_into_them(tmp_path: Path) -> None:
    base, weights = write(tmp_path / "model", BY_NAME["gptq-4-32"])
    rng = np.random.default_rng(4)
    left, right = (
        rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((SHAPES["self_attn.q_proj"][0], 4), (4, D))
    )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    prefix = f"base_model.model.{Q.removesuffix('weight')}lora_"
    save_file({f"{prefix}A.weight": right, f"{prefix}B.weight": left}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    merged = adapted(base, [str(adapter)])
    assert not isinstance(merged, Path)
    np.testing.assert_allclose(merged.read(Q, 3, 9), (weights[Q] + left @ right)[3:9], rtol=1e-5, atol=1e-6)
    assert merged.read_grouped(Q) is None
    other = Q.replace("q_proj", "k_proj")
    grouped = merged.read_grouped(other)
    assert grouped is not None
    assert np.array_equal(grouped.weights(), weights[other])


def test_what_they_become_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoint, _ = write(tmp_path / "model", BY_NAME["fp8-blocks"])
    pack_calibrated(checkpoint, tmp_path / "packed", notice=lines.append)
    assert any(re.fullmatch(r"stored weights: FP8 → q8 losing [\d.]+ % \(7\)", line) for line in lines)
    assert any(line.startswith("stored weights: FP8 → q8 losing") for line in known(str(tmp_path / "model")).notes)
    checkpoint, _ = write(tmp_path / "exact", BY_NAME["mxfp4"])
    pack_calibrated(checkpoint, tmp_path / "exactly", notice=lines.append)
    assert lines[-1] == "stored weights: MXFP4 → mxfp4 exactly (7)"


def test_methods_that_are_read_are_those_that_are_not_refused() -> None:
    assert METHODS.keys() == READ


def without(scheme: Scheme) -> dict[str, Any]:
    return {key: value for key, value in scheme.section.items() if key != "quant_method"}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_unknown_options_are_refused_by_name(scheme: Scheme, tmp_path: Path) -> None:
    checkpoint, _ = write(tmp_path / "model", scheme, rotation="hadamard")
    with pytest.raises(UnsupportedError, match="'rotation' is 'hadamard'") as error:
        checkpoint.names()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_wrong_values_of_options_are_one_line(scheme: Scheme, tmp_path: Path) -> None:
    """Each key that is known, with a value of another kind: an error that names it, or it changes nothing."""
    checkpoint, weights = write(tmp_path / "model", scheme)
    for key in without(scheme):
        changed = CONFIG | {scheme.key: scheme.section | {key: "other"}}
        (tmp_path / "model/config.json").write_text(json.dumps(changed))
        checkpoint = FolderCheckpoint(tmp_path / "model")
        told = ""
        try:
            assert np.array_equal(checkpoint.read(Q), weights[Q])
        except (CheckpointError, UnsupportedError) as error:
            told = str(error)
        assert not told or (key in told and "\n" not in told)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("gptq-4-32", {"bits": 3}, "'bits' is 3; supported here: 2, 4, 8"),
        ("gptq-4-32", {"checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
        ("gptq-4-32", {"dynamic": {"+:layers.0": {"bits": 8}}}, "'dynamic'"),
        ("awq-64", {"version": "gemv"}, "'version' is 'gemv'"),
        ("awq-64", {"zero_point": False}, "'zero_point' is False"),
        ("fp8-blocks", {"weight_block_size": [128]}, "'weight_block_size'"),
        ("fp8-blocks", {"fmt": "e5m2"}, "'fmt' is 'e5m2'"),
        ("pack-4-32", {"format": "marlin-24"}, "'format' is 'marlin-24'"),
        ("pack-4-32", {"transform_config": {"config_groups": {"a": 1}}}, "'transform_config'"),
        ("pack-4-32", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ("modelopt", {"quant_algo": "W4A8_AWQ"}, "'quant_algo' is 'W4A8_AWQ'"),
        ("mlx-4-32", {"mode": "mxfp8"}, "'mode' is 'mxfp8'"),
        ("mlx-4-32", {"model.layers.0.self_attn.q_proj": {"bits": 7}}, "'bits' is 7"),
    ],
)
def test_what_is_not_read_is_told(name: str, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    checkpoint, _ = write(tmp_path / "model", BY_NAME[name], **changed)
    with pytest.raises((UnsupportedError, CheckpointError), match=words):
        checkpoint.names()


def test_modules_of_mlx_may_have_options_of_their_own(tmp_path: Path) -> None:
    """One matrix has 8 bits where the others have 4, and one is not quantized."""
    scheme, eight = BY_NAME["mlx-4-32"], BY_NAME["mlx-8-32"]
    own = {f"{LAYER}self_attn.q_proj": {"bits": 8, "group_size": 32}, "lm_head": False}
    _, weights = write(tmp_path / "model", scheme, **own)
    _, others = write(tmp_path / "eight", eight)
    stored = raw(tmp_path / "model")
    stored |= {name: value for name, value in raw(tmp_path / "eight").items() if ".q_proj." in name}
    save(stored, tmp_path / "model/model.safetensors")
    checkpoint = FolderCheckpoint(tmp_path / "model")
    assert np.array_equal(checkpoint.read(Q), others[Q])
    k = Q.replace("q_proj", "k_proj")
    assert np.array_equal(checkpoint.read(k), weights[k])


def raw(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """All tensors of a folder as they are stored, by hand."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    types = {
        "I32": np.int32, "U32": np.uint32, "I64": np.int64, "F16": np.float16, "F32": np.float32, "I8": np.int8,
        "BF16": np.uint16,
    }  # fmt: skip
    found = {}
    for name, said in json.loads(data[8 : 8 + length]).items():
        low, high = said["data_offsets"]
        numbers = np.frombuffer(data[8 + length + low : 8 + length + high], types.get(said["dtype"], np.uint8))
        found[name] = (said["dtype"], numbers.reshape(said["shape"]))
    return found


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parts_that_do_not_fit_are_told_by_name(scheme: Scheme, tmp_path: Path) -> None:
    """Each part of a matrix, cut by a row, or missing."""
    write(tmp_path / "model", scheme)
    whole = raw(tmp_path / "model")
    mine = [name for name in whole if name.startswith(Q.removesuffix("weight"))]
    for name in mine:
        dtype, values = whole[name]
        cut = {} if not values.shape or values.shape[0] < 2 else {name: (dtype, values[:-1])}
        for changed in (cut, {}):
            save({k: v for k, v in whole.items() if k != name} | changed, tmp_path / "model/model.safetensors")
            checkpoint = FolderCheckpoint(tmp_path / "model")
            told = ""
            try:
                checkpoint.config  # noqa: B018
                checkpoint.read(Q)
            except (CheckpointError, UnsupportedError) as error:
                told = str(error)
            assert not told or ("q_proj" in told and "\n" not in told)
