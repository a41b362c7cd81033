"""Files are told by what is in them; parts of a GGUF file are found, and held to be of one model."""

import shutil
import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

import gguf_files  # noqa: E402

from lapinfer.checkpoint.gguf import GGUFCheckpoint  # noqa: E402
from lapinfer.checkpoint.gguf_file import GGUFFile  # noqa: E402
from lapinfer.checkpoint.hub import resolve  # noqa: E402
from lapinfer.checkpoint.magic import told_by  # noqa: E402
from lapinfer.errors import CheckpointError, LapinferError, UnsupportedError  # noqa: E402


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def split(whole, count=3, stem="model"):
    """What llama-gguf-split makes of a file: metadata in the first part, tensors in turn, none in the first."""
    reader, paths = gguf.GGUFReader(whole), []
    total, tensors = len(reader.tensors), list(reader.tensors)
    for i in range(count):
        path = whole.parent / f"{stem}-{i + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if i == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    kinds = [gguf.GGUFValueType(kind) for kind in field.types]
                    writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", total)
        for tensor in tensors[i - 1 :: count - 1] if i else ():
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "parts").mkdir()
    whole = gguf_files.write(tmp_path / "whole.gguf", kind="Q8_0")
    return whole, [path.rename(tmp_path / "parts" / path.name) for path in split(whole)]


def test_any_part_and_the_folder_are_the_whole_model(parts):
    """wllama#135: any part may be named, not only the first."""
    whole, paths = parts
    expected = GGUFCheckpoint(whole)
    name = "model.layers.0.self_attn.q_proj.weight"
    identities = set()
    for named in (*paths, paths[0].parent):
        checkpoint = resolve(named)
        assert isinstance(checkpoint, GGUFCheckpoint)
        assert checkpoint.config == expected.config
        assert sorted(checkpoint.names()) == sorted(expected.names())
        np.testing.assert_array_equal(checkpoint.read(name), expected.read(name))
        identities.add(checkpoint.contents.identity())
    assert len(identities) == 1


def test_parts_that_are_not_together(parts, tmp_path):
    _, paths = parts
    hidden = paths[1].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"one of 3 parts, missing are model-00002-of-00003\.gguf"):
        resolve(paths[0])
    shutil.copy(paths[2], paths[1])
    with pytest.raises(CheckpointError, match="is part 3 of 3 by its header, expected 2 of 3; the parts are mixed up"):
        resolve(paths[0])
    hidden.replace(paths[1])
    renamed = shutil.copy(paths[0], tmp_path / "sha256-0123")  # ggml-org/llama.cpp#9613: joined with cat, and renamed
    with pytest.raises(CheckpointError, match="is one of 3 parts, which are found by names like NAME-00001-of-00003"):
        resolve(renamed)


def test_parts_of_another_model(parts, tmp_path):
    _, paths = parts
    other = gguf_files.write(tmp_path / "o.gguf", kind="Q8_0", tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    strangers = split(other)
    shutil.copy(strangers[2], paths[2])
    with pytest.raises(CheckpointError, match=r"split\.tensors\.count is another than in"):
        resolve(paths[0])


def test_a_folder_of_one_model_and_what_sees_for_it(tmp_path):
    gguf_files.write(tmp_path / "model.gguf")
    (tmp_path / "mmproj-model.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path).path == tmp_path / "model.gguf"
    gguf_files.write(tmp_path / "model-q8.gguf", kind="Q8_0")
    with pytest.raises(CheckpointError, match=r"has 2 models in \.gguf files \(model-q8\.gguf, model\.gguf\)"):
        resolve(tmp_path)


def test_a_gguf_file_of_any_name(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf").rename(tmp_path / "sha256-970aa74c0a90ef7482477cf803618e776e173c00")
    checkpoint = resolve(path)
    assert isinstance(checkpoint, GGUFCheckpoint)


@pytest.mark.parametrize(
    ("begins", "words"),
    [
        (b"", "empty"),
        (b"\0" * 64, "nothing but zeros"),
        (b"PK\3\4....archive/data.pkl", "a zip archive, as PyTorch's weights are: a pickle"),
        (b"\x80\x02}q\0", "a pickle"),
        (b"tjgg\3\0\0\0", "a GGJT file of before August 2023"),
        (b"lmgg", "a GGML file of before August 2023"),
        (b"algg\1\0\0\0", "a LoRA adapter in an old GGML format"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer to a file that git-lfs has not fetched"),
        (b"<!DOCTYPE html><html>", "a web page"),  # ggml-org/llama.cpp#3358
        (b"\xef\xbb\xbf\n<html>", "a web page"),
        (b'{"error":"Repository not found"}', "JSON, perhaps an error"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"MZqFpD='\n", "a llamafile"),
        (b"hello", "no model (it begins with b'hello'"),
    ],
)
def test_what_a_file_is(tmp_path, begins, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(begins)
    with pytest.raises(LapinferError, match="is ") as raised:
        resolve(path)
    assert f"{path}: is {words}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_safetensors_file_by_any_name(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(UnsupportedError, match="is a safetensors file of a model; name its folder"):
        resolve(path)
    assert told_by(b"GGUF").kind == "gguf"
    with pytest.raises(CheckpointError, match="is a safetensors file"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (struct.pack(">IQQ", 3, 1, 1), "is a big-endian GGUF file"),
        (struct.pack("<III", 1, 1, 1), "has GGUF version 1, expected 2 or 3"),
        (struct.pack("<IQQ", 0, 0, 0), "has GGUF version 0, expected 2 or 3"),
        (struct.pack("<IQQ", 3, 0, 1 << 63), "header counts 9223372036854775808 entries"),
        (struct.pack("<IQQ", 3, 1 << 40, 0), "header counts 1099511627776 entries"),
        (struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + bytes(16), "inside its header"),
        (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 60), "counts 1152921504606846976"),
        (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 1 + struct.pack("<IQ", 9, 1) * 8,
         "value type 9"),
        (struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IQ", 13, 0), "value type 13"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path, header, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + header)
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        GGUFFile(path)


def test_too_many_entries_are_not_walked(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 70_000) + bytes(13 * 70_000))
    with pytest.raises(CheckpointError, match="has 0 tensors and 70000 keys, expected at most 65536 of each"):
        GGUFFile(path)


def tensor_file(path, shape=(4,), kind=0, offset=0, keys=b"", count=0, data=64):
    """One tensor, packed by hand."""
    info = struct.pack("<Q", 1) + b"t" + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, count) + keys + info
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(data))
    return path


def alignment(value):
    return struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (0,)}, "positive sizes"),
        ({"shape": (1,) * 5}, "5 dimensions, expected 1 to 4"),
        ({"shape": (1 << 62,) * 4}, "positive sizes"),
        ({"shape": ((1 << 39),) * 4}, "at most the file's"),
        ({"shape": (33,), "kind": 8}, "rows a multiple of 32 for Q8_0"),
        ({"offset": 8}, "a multiple of 32"),
        ({"data": 8}, r"at most the file's \d+ \(download again; if it was cut into pieces, join them\)"),
        ({"keys": alignment(0), "count": 1}, "general.alignment is 0, expected a power of two"),
        ({"keys": alignment(48), "count": 1}, "general.alignment is 48, expected a power of two"),
        ({"keys": alignment(32) * 2, "count": 2}, "'general.alignment' appears twice"),
    ],
)  # fmt: skip
def test_tensors_that_lie(tmp_path, options, words):
    with pytest.raises(CheckpointError, match=words):
        GGUFFile(tensor_file(tmp_path / "m.gguf", **options))


@pytest.mark.parametrize(("kind", "words"), [(31, "Q4_0_4_4, .*quantize the model again"), (77, "number 77")])
def test_types_that_nobody_knows_are_refused_when_needed(tmp_path, kind, words):
    file = GGUFFile(tensor_file(tmp_path / "m.gguf", kind=kind))
    with pytest.raises(UnsupportedError, match=words):
        file.rows("t")


def test_f64_is_read(tmp_path):
    values = {"output.weight": np.random.default_rng(0).standard_normal((300, 32))}
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tensors=values))
    np.testing.assert_array_equal(checkpoint.read("lm_head.weight"), values["output.weight"].astype(np.float32))
