"""A few mutants of every kind of file, which `python bench/fuzz.py` makes by the ten thousand."""

import json
import struct
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
from fake_model import byte_tokenizer_folder

from bench.fuzzing.child import outcome_of
from bench.fuzzing.subjects import SHARES, SUBJECTS
from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families import spec_from_config
from lapinfer.text.tokenizer import Tokenizer

MUTANTS = {"gguf": 20, "tokenizer": 40, "template": 15}
OTHERS = 25


def test_shares_are_of_all_kinds():
    assert list(SHARES) == list(SUBJECTS)
    assert sum(SHARES.values()) == 50_000


@pytest.mark.parametrize("kind", [kind for kind in SUBJECTS if kind not in ("packed", "safetensors", "config")])
def test_mutants_are_refused_or_run(tmp_path, monkeypatch, kind):
    if kind == "gguf":
        pytest.importorskip("gguf")
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    outcomes = [outcome_of(kind, tmp_path / str(i), 0, i) for i in range(MUTANTS.get(kind, OTHERS))]
    assert not [(i, detail) for i, (outcome, detail) in enumerate(outcomes) if outcome == "wrong"]
    assert len({outcome for outcome, _ in outcomes}) > 1


# What mutants have found


def gguf_with(tmp_path: Path, architecture: str, change):
    """A sound file after change(file), opened."""
    pytest.importorskip("gguf")
    import random

    from bench.fuzzing import gguf_files
    from bench.fuzzing.subjects import gguf
    from lapinfer.checkpoint.gguf import GGUFCheckpoint

    file = gguf_files.read(gguf((architecture, "F32")))
    change(file)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_files.write(file, random.Random(1)))
    return GGUFCheckpoint(path)


@pytest.mark.parametrize("key", [b"general.type", b"general.quantization_version", b"general.architecture"])
def test_an_array_where_one_value_is_expected_is_refused(tmp_path, monkeypatch, key):
    from bench.fuzzing.gguf_files import Array

    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))

    def change(file):
        file.pairs = [pair for pair in file.pairs if pair[0] != key] + [(key, 9, Array(4, [2, 2]))]
        file.tensors[0].kind = 8  # a quantized type
        file.tensors[0].dims[0] = 32

    with pytest.raises((CheckpointError, UnsupportedError)):
        gguf_with(tmp_path, "llama", change)


def test_heads_of_no_width_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))

    def change(file):
        file.pairs += [(b"granite.attention.key_length", 4, 0), (b"granite.attention.value_length", 4, 0)]

    with pytest.raises((CheckpointError, UnsupportedError)):
        spec_from_config(gguf_with(tmp_path, "granite", change).config, "config.json")


def test_a_last_dimension_of_one_changes_nothing(tmp_path, monkeypatch):
    """ggml's tensors have four dimensions, and a file may name those that are 1."""
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    name = "blk.0.attn_v.weight"

    def change(file):
        next(tensor for tensor in file.tensors if tensor.name == name.encode()).dims.append(1)

    published = "model.layers.0.self_attn.v_proj.weight"
    plain = gguf_with(tmp_path, "llama", lambda file: None).read(published)
    np.testing.assert_array_equal(gguf_with(tmp_path, "llama", change).read(published)[0], plain)


def test_messages_are_short_however_long_the_names_are_that_they_quote():
    text = str(CheckpointError(f"config.json: {'a' * 10_000} is not known, expected b"))
    assert len(text) < 2000
    assert text.startswith("config.json: aaa")
    assert text.endswith("aaa is not known, expected b")


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json"])
def test_half_of_a_pair_is_no_token(tmp_path, where):
    folder = byte_tokenizer_folder(tmp_path / "m")
    text = '{"bos_token": "\\ud800"}' if where == "tokenizer_config.json" else '{"\\ud800": 300}'
    (folder / where).write_text(text)
    if where == "added_tokens.json":
        (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="surrogate"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 1 << 31, 400, 6])
def test_a_normalizer_does_not_say_how_much_memory_it_takes(tmp_path, size):
    """The library would set 4 bytes aside for each that the first word counts, whatever follows."""
    folder = byte_tokenizer_folder(tmp_path / "m")
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    table = b64encode(struct.pack("<I", size) + bytes(300)).decode()
    path.write_text(json.dumps(value | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}))
    with pytest.raises(CheckpointError, match="precompiled_charsmap"):
        Tokenizer.from_folder(folder)
