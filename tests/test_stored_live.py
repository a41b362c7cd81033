"""Checkpoints that are odd and sound: the engine's logits beside those of transformers' from_pretrained."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lapinfer.calibration import pack_calibrated  # noqa: E402
from lapinfer.checkpoint.folder import FolderCheckpoint  # noqa: E402
from lapinfer.loading import load_model  # noqa: E402
from lapinfer.options import LoadOptions  # noqa: E402

BOUND = 1e-4
"""As in test_parity."""

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
INDEX = "model.safetensors.index.json"
Config = dict[str, Any]
Tensors = dict[str, np.ndarray]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, np.float32) / 4


def head(config: Config) -> np.ndarray:
    return noise(config["vocab_size"], config["hidden_size"])


def tied_with_a_head(config: Config, stored: Tensors) -> None:
    config["tie_word_embeddings"] = True
    stored[HEAD] = head(config)


def tied_with_the_same_head(config: Config, stored: Tensors) -> None:
    config["tie_word_embeddings"] = True
    stored[HEAD] = stored[EMBED].copy()


def only_the_head(config: Config, stored: Tensors) -> None:
    config["tie_word_embeddings"] = True
    stored[HEAD] = stored.pop(EMBED)


def no_prefix(config: Config, stored: Tensors) -> None:
    for name in list(stored):
        stored[name.removeprefix("model.")] = stored.pop(name)


def float64(config: Config, stored: Tensors) -> None:
    for name in list(stored):
        stored[name] = stored[name].astype(np.float64) * 1.000000001


def odd_buffers(config: Config, stored: Tensors) -> None:
    stored |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": noise(6),
        "model.layers.0.self_attn.rotary_emb.cos_cached": noise(1, 1, 8, 12),
        "model.seen": np.array(3),
        "model.layers.1.steps": np.arange(4, dtype=np.int32),
        "model.layers.1.self_attn.bias": np.ones((1, 1, 4, 4), bool),
        "model.layers.1.nothing": np.zeros((0, 3), np.float16),
    }


def more_layers(config: Config, stored: Tensors) -> None:
    config["num_hidden_layers"] = 1


@pytest.mark.parametrize(
    "change",
    [tied_with_a_head, tied_with_the_same_head, only_the_head, no_prefix, float64, odd_buffers, more_layers],
    ids=lambda change: change.__name__,
)
def test_as_transformers(change: Callable[[Config, Tensors], None], tmp_path: Path) -> None:
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / "llama-plain.npz")
    change(config, stored)
    compare(write(tmp_path, config, {"model.safetensors": stored}), ids)


def test_gpt2_by_its_head(tmp_path: Path) -> None:
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / "gpt2-plain.npz")
    stored[HEAD] = stored.pop("transformer.wte.weight")
    compare(write(tmp_path, config, {"model.safetensors": stored}), ids)


def test_a_stale_index_and_an_overlay(tmp_path: Path) -> None:
    """Names that no shard has, and a tensor that a later shard has anew, as the index says."""
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / "llama-tied_mha.npz")
    stored.pop(HEAD, None)
    folder = write(tmp_path, config, {"model-1.safetensors": stored, "model-overlay.safetensors": {NORM: noise(48)}})
    places = dict.fromkeys([*stored, HEAD], "model-1.safetensors") | {NORM: "model-overlay.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    compare(folder, ids)


def test_unread_tensors_of_types_that_nobody_computes_with(tmp_path: Path) -> None:
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / "llama-plain.npz")
    folder = write(tmp_path, config, {"model.safetensors": stored})
    more = {
        "extra.a": ("F8_E4M3", 4, 4),
        "extra.b": ("F8_E5M2", 2, 2),
        "extra.c": ("C64", 1, 8),
        "extra.d": ("BOOL", 4, 4),
    }
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, at = json.loads(data[8 : 8 + length]), len(data) - 8 - length
    for name, (dtype, count, size) in more.items():
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + bytes(at - len(data) + 8 + length))
    compare(folder, ids)


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_undeclared_biases_are_those_of_a_model_that_declares_them(key: str, tmp_path: Path) -> None:
    config, stored, ids, _ = tiny.read_golden(tiny.GOLDEN / "llama-plain.npz")
    for name in [n for n in stored if ("self_attn" if key == "attention_bias" else "mlp") in n]:
        stored[name.replace("weight", "bias")] = noise(len(stored[name]))
    (tmp_path / "declared").mkdir()
    declared = write(tmp_path / "declared", config | {key: True}, {"model.safetensors": stored})
    compare(write(tmp_path, config, {"model.safetensors": stored}), ids, reference=declared)


def write(folder: Path, config: Config, shards: dict[str, Tensors]) -> Path:
    """A folder of safetensors without metadata, which transformers reads, too."""
    folder = folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, stored in shards.items():
        save_file(stored, folder / name)
    return folder


def compare(folder: Path, ids: list[int], reference: Path | None = None) -> None:
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        reference or folder, dtype=torch.float32, attn_implementation="eager"
    )
    expected = tiny.logits_of(model.eval(), ids)
    packed = pack_calibrated(FolderCheckpoint(folder), folder.parent / "packed", "f32")
    ours = load_model(packed, LoadOptions(kv="f32", ctx=len(ids), threads=2))
    try:
        got = ours.forward(ids)
    finally:
        ours.close()
    assert float(np.abs(got - expected).max() / np.abs(expected).max()) <= BOUND
