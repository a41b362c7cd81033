"""The safetensors reader against the official writer, and against headers that lie."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.errors import CheckpointError, UnsupportedError


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_official_library_wrote(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((5, 3)).astype(np.float32),
        "b": rng.standard_normal((4, 7)).astype(np.float16),
        "c": np.arange(6, dtype=np.int64).reshape(2, 3),
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, tmp_path / "m.safetensors", {"format": "np"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.metadata == {"format": "np"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.view(name), array)
        assert not file.view(name).flags.writeable or not array.size
    np.testing.assert_array_equal(file.read("b", 1, 3), arrays["b"][1:3].astype(np.float32))
    with pytest.raises(CheckpointError, match="tensor 'c' has dtype I64, expected F32"):
        file.read("c")
    with pytest.raises(CheckpointError, match="tensor 'x' is missing"):
        file.view("x")


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.1415927, np.inf], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    path = write(tmp_path / "m.safetensors", {"x": tensor("BF16", (2, 2))}, bits.tobytes())
    expected = (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 2)
    np.testing.assert_array_equal(SafetensorsFile(path).read("x"), expected)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": tensor("F7")}, b"." * 8, "tensor 'x' has dtype F7, expected one of"),
        ({"x": tensor(shape=(3,))}, b"." * 8, "tensor 'x' has data_offsets .*, expected 12 bytes"),
        ({"x": tensor(offsets=(-8, 0))}, b"." * 8, "expected two byte positions"),
        ({"x": tensor(offsets=(8, 0))}, b"." * 8, "tensor 'x' has data_offsets"),
        ({"x": tensor(shape=(-2,))}, b"." * 8, "tensor 'x' has shape"),
        ({"x": tensor(shape=(1 << 62, 1 << 62))}, b"." * 8, "tensor 'x' has shape"),
        ({"x": tensor(shape=(True, 2))}, b"." * 8, "tensor 'x' has shape"),
        ({"x": tensor(), "y": tensor(offsets=(4, 12))}, b"." * 12, "tensor 'y' .*overlapping"),
        ({"x": tensor(), "y": tensor(offsets=(12, 20))}, b"." * 20, "tensor 'y' .*after a hole"),
        ({"x": tensor()}, b"." * 4, "the file has .* bytes, its header describes"),
        ({"x": tensor()}, b"." * 9, "the file has .* bytes, its header describes"),
        ({"x": 5}, b"", "tensor 'x' has entry 5"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        (b"[]", b"", "JSON list, expected an object"),
        (b"{", b"", "not valid JSON"),
        (b"\xff{}", b"", "not valid JSON"),
        (b'{"x":1,"x":2}', b"", "'x' appears twice"),
        (b"[" * 100_000, b"", "not valid JSON"),
    ],
)
def test_headers_that_lie(tmp_path, header, data, message):
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [3, 1 << 20, 1 << 63])
def test_header_length_that_lies(tmp_path, length):
    with pytest.raises(CheckpointError):
        SafetensorsFile(write(tmp_path / "m.safetensors", {"x": tensor()}, b"." * 8, length))


def test_no_file_and_empty_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(CheckpointError, match="empty"):
        SafetensorsFile(tmp_path / "m.safetensors")


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros((3,), np.float16)}, tmp_path / "two.safetensors")
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_folder_of_shards(shards):
    checkpoint = FolderCheckpoint(shards)
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert checkpoint.shape("a") == (2, 2)
    assert checkpoint.stored_as("b") == "F16"
    assert checkpoint.read("b").dtype == np.float32
    assert checkpoint.read_grouped("a") is None
    before = checkpoint.contents.identity()
    assert FolderCheckpoint(shards).contents.identity() == before
    save_file({"b": np.zeros((4,), np.float16)}, shards / "two.safetensors")
    assert FolderCheckpoint(shards).contents.identity() != before


def test_folder_errors(shards):
    index(shards, {"a": "one.safetensors", "b": "three.safetensors"})
    with pytest.raises(CheckpointError, match=r"three\.safetensors: no such file"):
        FolderCheckpoint(shards)
    index(shards, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one\.safetensors: tensor 'b' is missing"):
        FolderCheckpoint(shards)
    index(shards, {"a": "../one.safetensors"})
    with pytest.raises(CheckpointError, match="expected a file beside it"):
        FolderCheckpoint(shards)
    save_file({"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}, shards / "two.safetensors")
    index(shards, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="tensor 'a' is also in"):
        FolderCheckpoint(shards)
    for text in ("[]", "{", "\x00"):
        (shards / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            FolderCheckpoint(shards)


def test_a_pickle_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        FolderCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin"):
        FolderCheckpoint(tmp_path)
