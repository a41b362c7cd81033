"""The safetensors reader against the official writer, and against headers that lie."""

import json
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.json_files import read_json
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
        ({"x": tensor(7)}, b"." * 8, "tensor 'x' has dtype 7, expected one of"),
        ({"x": tensor("F7", offsets=(8, 0))}, b"." * 8, "tensor 'x' has data_offsets"),
        ({"x": tensor("F4")}, b"." * 8, "tensor 'x' has data_offsets .*, expected 1 bytes"),
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
    index(shards, {"a": "../one.safetensors"})
    with pytest.raises(CheckpointError, match="expected a file beside it"):
        FolderCheckpoint(shards)
    index(shards, {"a": "three.safetensors"})
    with pytest.raises(CheckpointError, match=r"three\.safetensors: no such file"):
        FolderCheckpoint(shards)
    for text in ("[]", "{", "\x00"):
        (shards / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            FolderCheckpoint(shards)


def test_an_index_is_believed_only_in_what_is_needed(shards):
    """Stale entries and missing shards are told when somebody asks for them."""
    index(shards, {"a": "one.safetensors", "b": "two.safetensors", "old": "one.safetensors", "c": "three.safetensors"})
    checkpoint = FolderCheckpoint(shards)
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert not checkpoint.is_complete
    with pytest.raises(CheckpointError, match=r"one\.safetensors: tensor 'old' is missing, which model\.safetensors"):
        checkpoint.shape("old")
    with pytest.raises(CheckpointError, match=r"three\.safetensors: no such file; it has tensor 'c'"):
        checkpoint.read("c")


def test_a_tensor_in_two_shards(shards):
    """The same numbers twice are no question; others are, unless the index names the last shard, as an overlay is."""
    save_file({"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float16)}, shards / "two.safetensors")
    np.testing.assert_array_equal(FolderCheckpoint(shards).read("a"), np.ones((2, 2)))
    save_file({"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float16)}, shards / "two.safetensors")
    checkpoint = FolderCheckpoint(shards)
    checkpoint.read("b")
    with pytest.raises(CheckpointError, match=r"'a' is in 2 shards with other numbers, and .* says one"):
        checkpoint.read("a")
    index(shards, {"a": "two.safetensors", "b": "two.safetensors", "old": "one.safetensors"})
    np.testing.assert_array_equal(FolderCheckpoint(shards).read("a"), np.zeros((2, 2)))


def test_a_pickle_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        FolderCheckpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin"):
        FolderCheckpoint(tmp_path)


def test_types_that_are_only_passed_by(tmp_path):
    """Sub-byte, 8-bit and unknown types are no fault of a file while nobody reads them."""
    header = {
        "x": tensor(), "f8": tensor("F8_E4M3", (4,), (8, 12)), "f4": tensor("F4", (2, 4), (12, 16)),
        "new": tensor("F8_E4M3FNUZ", (3, 5), (16, 20)), "c": tensor("C64", (1,), (20, 28)),
        "i": tensor("I64", (), (28, 36)),
        "none": tensor("F8_E5M2", (0, 7), (36, 36)), "__metadata__": {"format": 1, "more": {"a": []}, "text": "kept"},
    }  # fmt: skip
    file = SafetensorsFile(write(tmp_path / "m.safetensors", header, np.ones(2, "<f4").tobytes() + bytes(28)))
    assert file.metadata == {"text": "kept"}
    np.testing.assert_array_equal(file.read("x"), [1, 1])
    for name in ("f8", "f4", "new", "c", "i", "none"):
        with pytest.raises(CheckpointError, match=f"tensor {name!r} has dtype {file[name].dtype}, expected F32, F16, "):
            file.read(name)


def test_float64_becomes_the_nearest_float32(tmp_path):
    values = np.array([0.1, 1 / 3, -1e300, np.pi])
    path = write(tmp_path / "m.safetensors", {"x": tensor("F64", (4,), (0, 32))}, values.astype("<f8").tobytes())
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.read("x", 3), np.float32([np.pi]))
    np.testing.assert_array_equal(file.read("x", 0, 2), values[:2].astype(np.float32))
    with pytest.raises(CheckpointError, match="'x' has numbers that are too large for float32"):
        file.read("x")


LARGE = {
    "keys of one object": lambda: b"{" + b",".join(b'"%d":1' % i for i in range(400_000)) + b',"399999":1}',
    "overlaps": lambda: json.dumps({f"t{i}": tensor("U8", (4,), (i, i + 4)) for i in range(50_000)}).encode(),
    "values": lambda: b'{"x":[' + b"[]," * 2_200_000 + b"[]]}",
    "nesting": lambda: b'{"x":' * 3_000_000,
    "a name": lambda: b'{"' + b"x" * 40_000_000 + b'":1}',
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_large_headers_are_refused_soon(what, tmp_path):
    """Time and memory grow with the bytes, not with their square; what would take more is refused first."""
    path = write(tmp_path / "m.safetensors", LARGE[what]())
    began = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert time.process_time() - began < 3
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 1_000_000, "not valid JSON"),
        (b'{"a":[' + b"1," * 2_200_000 + b"1]}", "values, expected at most"),
        (b'{"a":1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'"' + b"a" * (65 << 20) + b'"', "more than 64 MB"),
    ],
)
def test_large_json_files_are_refused_soon(text, message, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")


def test_a_byte_order_mark_before_json(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"model_type": "llama"}')
    assert read_json(tmp_path / "config.json") == {"model_type": "llama"}
