"""Folders and files that are no checkpoint: one line that says what they are, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lapinfer.checkpoint import hub
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import LapinferError

CONFIG = '{"model_type": "llama"}'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
PICKLE = b"PK\x03\x04data.pkl"
ADAPTER = json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})

FOLDERS: dict[str, tuple[dict[str, str | bytes], tuple[str, ...]]] = {
    "LoRA": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""}, ("'org/base'", "--lora")),
    "LoRA as a pickle": ({"adapter_model.bin": PICKLE}, ("an adapter", "--lora")),
    "LoRA of MLX": ({"adapter_config.json": '{"model": "org/mlx"}', "adapters.safetensors": ""}, ("'org/mlx'", "fuse")),
    "LoRA with a config": ({"config.json": CONFIG, "adapter_config.json": "[]"}, ("an adapter", "merge")),
    "pickle": (
        {"config.json": CONFIG, "pytorch_model.bin": PICKLE},
        ("pytorch_model.bin, a pickle", "save_"),
    ),
    "pickle shards": ({"config.json": CONFIG, "pytorch_model-00001-of-00002.bin": PICKLE}, ("pickle",)),
    "Meta": ({"consolidated.00.pth": PICKLE, "params.json": "{}", "tokenizer.model": ""}, ("Meta", "transformers")),
    "Mistral": ({"consolidated.safetensors": "", "params.json": "{}"}, ("Mistral", "transformers")),
    "training checkpoint": ({"model.ckpt": PICKLE}, ("'model.ckpt', a pickle",)),
    "TensorFlow": ({"config.json": CONFIG, "tf_model.h5": b"\x89HDF"}, ("TensorFlow", "transformers")),
    "Keras": ({"config.json": "{}", "model.weights.h5": ""}, ("Keras",)),
    "Flax": ({"config.json": CONFIG, "flax_model.msgpack": ""}, ("Flax",)),
    "ONNX": ({"config.json": CONFIG, "onnx/model.onnx": "", "tokenizer.json": "{}"}, ("ONNX",)),
    "OpenVINO": ({"config.json": CONFIG, "openvino_model.xml": "", "openvino_tokenizer.xml": ""}, ("OpenVINO",)),
    "Core ML": ({"model.mlpackage/Manifest.json": "{}"}, ("Core ML",)),
    "TensorRT": ({"config.json": "{}", "rank0.engine": ""}, ("TensorRT",)),
    "MLC": ({"mlc-chat-config.json": "{}", "params_shard_0.bin": ""}, ("MLC",)),
    "early MLX": ({"config.json": CONFIG, "weights.npz": b"PK"}, ("MLX",)),
    "NeMo": ({"model.nemo": ""}, ("NeMo",)),
    "DeepSpeed": (
        {"zero_to_fp32.py": "", "global_step5/mp_rank_00_model_states.pt": ""},
        ("DeepSpeed", "with zero_"),
    ),
    "FSDP": ({"__0_0.distcp": "", ".metadata": ""}, ("FSDP",)),
    "diffusers": ({"model_index.json": "{}", "unet/config.json": "{}"}, ("diffusers",)),
    "sentence-transformers": ({"modules.json": "[]", "config.json": CONFIG, "pytorch_model.bin": ""}, ("embeddings",)),
    "ollama": ({"blobs/sha256-ab": b"GGUF----", "blobs/sha256-cd": "{}", "manifests/x": ""}, ("ollama", "sha256-ab")),
    "blobs of ollama": ({"sha256-ab": b"GGUF----", "sha256-cd": "{}"}, ("ollama", "largest is", "sha256-ab")),
    "shards": ({"config.json": CONFIG, "model-00001-of-00001.safetensors": ""}, ("index",)),
    "variant": ({"config.json": CONFIG, "model.fp16.safetensors": ""}, ("'model.fp16.safetensors'",)),
    "another name": ({"config.json": CONFIG, "weights.safetensors": ""}, ("'weights.safetensors'",)),
    "only a tokenizer": ({"tokenizer.json": "{}"}, ("only a tokenizer",)),
    "only a config": ({"config.json": CONFIG}, ("no model.safetensors", "index")),
    "weights alone": ({"model.safetensors": ""}, ("no config.json",)),
    "a folder below": ({"model/config.json": CONFIG, "model/model.safetensors": ""}, ("model: name that",)),
    "nothing": ({}, ("config.json", "empty")),
    "something": ({"README.md": "hello"}, ("no config.json",)),
    "weights by LFS": ({"config.json": CONFIG, "model.safetensors": LFS}, ("git-lfs", "git lfs pull")),
    "config by LFS": ({"config.json": LFS, "model.safetensors": LFS}, ("config.json", "git-lfs", "git lfs pull")),
    "index by LFS": ({"config.json": CONFIG, "model.safetensors.index.json": LFS}, ("index.json", "git lfs pull")),
    "a page": ({"config.json": CONFIG, "model.safetensors": b"\n<!DOCTYPE html><html>"}, ("web page", "again")),
    "a page as config": ({"config.json": b"Entry not found", "model.safetensors": ""}, ("config.json", "hub")),
    "a renamed pickle": ({"config.json": CONFIG, "model.safetensors": PICKLE + bytes(9)}, ("zip", "save_pretrained")),
    "a renamed GGUF": ({"config.json": CONFIG, "model.safetensors": b"GGUF\x03" + bytes(90)}, ("GGUF",)),
    "a training": ({"run.json": "{}", "state.safetensors": ""}, ("training",)),
}
FILES = {
    "config.json": (b"{}", "name the folder"),
    "tokenizer.json": (b"{}", "name the folder"),
    "model.safetensors.index.json": (b"{}", "name the folder"),
    "model-00001-of-00002.safetensors": (b"x" * 99, "name its folder"),
    "adapter_model.safetensors": (b"x" * 99, "adapter"),
    "pytorch_model.bin": (PICKLE, "pickle"),
    "consolidated.00.pth": (b"\x80\x02}", "pickle"),
    "model.onnx": (b"\x08", "ONNX"),
    "tf_model.h5": (b"\x89HDF", "HDF5"),
    "model.zip": (b"zip", "unpack"),
    "tokenizer.model": (b"\x0a", "tokenizer"),
    "x.gguf.html": (b"<html>", "web page"),
    "notes.txt": (b"hello", "expected a GGUF file or a folder"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def told(path: Path) -> str:
    with pytest.raises(LapinferError) as caught:
        hub.resolve(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 500
    return message.replace(str(path.parent), "")


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_something_else(what, tmp_path):
    files, words = FOLDERS[what]
    message = told(put(tmp_path / "f", files))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", FILES)
def test_a_file_instead_of_a_folder(name, tmp_path):
    data, word = FILES[name]
    path = put(tmp_path / "f", {name: data}) / name
    assert word in told(path)


def checkpoint(folder: Path) -> Path:
    put(folder, {"config.json": CONFIG})
    save_file({"a": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_folder_of_the_hubs_cache_means_its_snapshot(tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    first = checkpoint(cache / "snapshots" / "abc")
    assert getattr(hub.resolve(cache), "path", None) == first
    checkpoint(cache / "snapshots" / "def")
    assert "has 2 snapshots, name one" in told(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("def\n")
    assert getattr(hub.resolve(cache), "path", None) == cache / "snapshots" / "def"


def test_a_folder_in_a_model(tmp_path):
    folder = checkpoint(tmp_path / "model")
    (folder / "onnx_files").mkdir()
    assert "there is a model in" in told(folder / "onnx_files")


def test_what_lies_beside_sound_weights_is_told(tmp_path):
    folder = checkpoint(tmp_path / "model")
    assert FolderCheckpoint(folder).notices == ()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    (folder / "pytorch_model.bin").touch()
    adapter, embeddings = FolderCheckpoint(folder).notices
    assert "not applied" in adapter
    assert "embeddings" in embeddings
