"""The packed form: readable by the official library, aligned, and never half there under its final name."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import other_systems
import pytest
import safetensors.numpy

from lapinfer.checkpoint.home import is_packed
from lapinfer.errors import CheckpointError, DoesNotFitError
from lapinfer.packing import writer as writing
from lapinfer.packing.entries import ALIGN, DIGESTS, LINE, BankEntry, PackedEntry, parts_of, with_banks
from lapinfer.packing.reader import PackedFile
from lapinfer.packing.writer import PackedWriter
from lapinfer.tensors import Tensor

ENTRIES = [
    PackedEntry(Tensor(-1, "embed", (50, 70), "embedding", "matrix", packing="blocks"), "q8"),
    PackedEntry(Tensor(0, "qkv", (33, 64), "attention", "matrix", packing="blocks"), "q4"),
    PackedEntry(Tensor(-1, "norm", (64,), "head", "norm", ".weight"), None),
    PackedEntry(Tensor(-1, "positions", (3, 5), "embedding", "table"), None),
]
METADATA = {"quant": "q4", "source": "abc"}


def opened(path, entries=ENTRIES):
    return PackedFile(path, (part.tensor for entry in entries for part in parts_of(entry)))


def arrays(entries=ENTRIES):
    rng = np.random.default_rng(1)
    made = {}
    for entry in entries:
        dtype, shape = entry.stored
        made[entry.name] = rng.integers(0, 255, shape, np.uint8) if dtype == "U8" else rng.random(shape, np.float32)
    return made


def pack(path, names=None, metadata=METADATA):
    with PackedWriter(path, ENTRIES, metadata) as writer:
        for name in writer.remaining():
            if names is None or name in names:
                writer.write(name, arrays()[name])
        if names is None:
            writer.finish()
        return writer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_round_trip(path):
    pack(path)
    assert os.listdir(path.parent) == ["model.safetensors"]
    assert is_packed(path)
    assert is_packed(path.parent)
    file = opened(path.parent)
    assert file.names() == [e.name for e in ENTRIES]
    assert file.metadata["source"] == "abc"
    assert (file.format("embed"), file.shape("embed")) == ("q8", (64, 70))
    assert (file.format("positions"), file.shape("positions")) == (None, (3, 5))
    for name, array in arrays().items():
        view = file.tensor(name)
        np.testing.assert_array_equal(view, array)
        assert view.dtype == array.dtype
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert view.ctypes.data % 64 == 0
    official = safetensors.numpy.load_file(path)
    assert {n for n in official if not n.startswith(".pad.")} == {*arrays(), DIGESTS}
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["format"] == "lapinfer"
    for name, array in arrays().items():
        np.testing.assert_array_equal(official[name], array)


def test_every_tensor_starts_at_16_kib(path):
    pack(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    starts = [header[e.name]["data_offsets"][0] for e in ENTRIES]
    assert (8 + length) % ALIGN == 0
    assert all(start % ALIGN == 0 for start in starts)


def test_slices_of_row_blocks(path):
    pack(path.with_name("whole"))
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        for name in writer.remaining():
            array = arrays()[name]
            writer.write(name, array[:1])
            if len(array) > 1:
                writer.write(name, array[1:])
        writer.finish()
    assert path.read_bytes() == path.with_name("whole").read_bytes()


def test_wrong_slices_are_refused(path):
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        with pytest.raises(ValueError, match="embed"):
            writer.write("embed", np.zeros((9, 3, 544), np.uint8))
        with pytest.raises(ValueError, match="embed"):
            writer.write("embed", np.zeros((1, 3, 543), np.uint8))
        with pytest.raises(ValueError, match="not written"):
            writer.finish()
    assert not path.exists()


def test_resumes_after_the_last_whole_tensor(path):
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        writer.write("embed", arrays()["embed"])
        writer.write("layers.0.qkv", arrays()["layers.0.qkv"][:1])  # a part: to be written again
    assert not path.exists()
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        assert writer.remaining() == ["layers.0.qkv", "norm.weight", "positions"]
    pack(path)
    for name, array in arrays().items():
        np.testing.assert_array_equal(opened(path).tensor(name), array)


def test_another_source_starts_anew(path):
    pack(path, names=["embed"])
    with PackedWriter(path, ENTRIES, METADATA | {"source": "changed"}) as writer:
        assert len(writer.remaining()) == 4


@pytest.mark.parametrize("damage", ["shorter", "no journal", "torn journal"])
def test_a_damaged_start_is_not_trusted(path, damage):
    pack(path, names=["embed"])
    partial, journal = path.with_name(path.name + ".partial"), path.with_name(path.name + ".journal")
    if damage == "shorter":
        os.truncate(partial, 1000)
    elif damage == "no journal":
        journal.unlink()
    else:
        journal.write_text(journal.read_text().rstrip("\n"))
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        assert "embed" in writer.remaining()


def test_a_finished_file_is_not_packed_again(path):
    pack(path)
    before = path.stat().st_mtime_ns
    assert pack(path).finished
    assert path.stat().st_mtime_ns == before
    assert os.listdir(path.parent) == ["model.safetensors"]
    pack(path, metadata=METADATA | {"source": "changed"})
    assert opened(path).metadata["source"] == "changed"


KILLED = """
import sys, os
sys.path.insert(0, sys.argv[2])
from test_packed import *
{begin}
with PackedWriter(__import__("pathlib").Path(sys.argv[1]), ENTRIES, METADATA) as writer:
    writer.write("embed", arrays()["embed"])
    writer.write("layers.0.qkv", arrays()["layers.0.qkv"][:1])
    print("here", flush=True)
    {end}
"""


def start(path, end, begin=""):
    code = KILLED.replace("{end}", end).replace("{begin}", begin)
    return subprocess.Popen([sys.executable, "-c", code, path, os.path.dirname(__file__)], stdout=subprocess.PIPE)


def test_a_killed_packing_leaves_no_whole_file(path):
    process = start(path, "os._exit(9)")
    assert process.communicate()[0] == b"here\n"
    assert not path.exists()
    assert not is_packed(path.parent)
    pack(path)
    np.testing.assert_array_equal(opened(path).tensor("layers.0.qkv"), arrays()["layers.0.qkv"])


@pytest.mark.parametrize("kept", [False, True])
def test_a_second_process_waits_and_finds_the_file(path, kept, request):
    """kept: on Windows nobody can rename what somebody has open, so who waits must not have it open."""
    if kept:
        request.getfixturevalue("kept_while_open")
    end = "import time; time.sleep(0.5); writer.write('layers.0.qkv', arrays()['layers.0.qkv'][1:])"
    end += "; [writer.write(n, arrays()[n]) for n in writer.remaining()]; writer.finish()"
    process = start(path, end, f"writing.KEPT_WHILE_OPEN = {kept}")
    assert process.stdout
    process.stdout.readline()
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        if kept:
            assert not [file for file in other_systems.open_files() if file.startswith(str(path))]

    with PackedWriter(path, ENTRIES, METADATA, notice=hear) as writer:
        assert writer.finished
        assert not writer.remaining()
        writer.finish()
    process.communicate()
    assert heard
    assert re.fullmatch(r".*: waiting for (process \d+|another process): it packs here", heard[0])
    assert os.listdir(path.parent) == ["model.safetensors"]
    opened(path)


def test_a_small_disk_is_seen_before_the_first_byte(path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: writing.shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(
        DoesNotFitError, match=r"packing needs [\d,]+ bytes there, 100 are free; free some, or name a folder on a l"
    ):
        PackedWriter(path, ENTRIES, METADATA)
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"packing needs [\d,]+ bytes there, [\d,]+ are free"),
        (errno.EDQUOT, r"packing needs [\d,]+ bytes there"),
        (errno.EFBIG, r"more than a file may have there; raise the limit \(ulimit -f\)"),
    ],
)
def test_a_disk_that_fills_up(path, monkeypatch, number, said):
    def full(*_):
        raise OSError(number, os.strerror(number))

    with PackedWriter(path, ENTRIES, METADATA) as writer:
        monkeypatch.setattr(writing.os, "write", full)
        with pytest.raises(DoesNotFitError, match=rf"{path.parent}.*{said}"):
            writer.write("embed", arrays()["embed"])
    assert not path.exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        PackedWriter(tmp_path / "file" / "model.safetensors", ENTRIES, METADATA)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(writing.os, "open", refuse)
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    for folder, step in (("home/packed", "set LAPINFER_HOME to a folder"), ("named", "name a folder")):
        with pytest.raises(CheckpointError, match=f"{folder}.*Permission denied; {step} that can be written"):
            PackedWriter(tmp_path / folder / "model.safetensors", ENTRIES, METADATA)


X = Tensor(-1, "x", (16, 32), "head", "matrix", packing="blocks")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pt"}, "has format 'pt', expected 'lapinfer'"),
        ({"version": "1"}, "has version '1', expected '2'"),
        ({"tensors": "["}, "not valid JSON"),
        ({"tensors": "[]"}, "not an object"),
        ({"tensors": '{"x": {"format": "q9", "shape": [1, 2]}}'}, "expected a format and a shape"),
        ({"tensors": '{"x": {"format": "q8", "shape": [16, -32]}}'}, "expected a format and a shape"),
        ({"tensors": '{"x": {"format": "q4", "shape": [16, 32]}}'}, "tensor 'x' has U8"),
        ({"tensors": '{"x": {"format": "q8", "shape": [32, 32]}}'}, "tensor 'x' has q8 .*, config.json says"),
        ({"tensors": '{"y": {"format": "q8", "shape": [16, 32]}}'}, "has 'y', which config.json does not promise"),
        ({"tensors": "{}"}, "tensor 'x' is missing from metadata"),
        ({}, "expected a multiple of 16384"),
    ],
)
def test_contradictions_are_refused(path, change, message):
    metadata = {"format": "lapinfer", "version": "2", "tensors": '{"x": {"format": "q8", "shape": [16, 32]}}'} | change
    safetensors.numpy.save_file({"x": np.zeros((1, 544), np.uint8)}, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        PackedFile(path, [X])


def bank_of_leaves() -> list[Tensor]:
    return [
        Tensor(0, f"leaves.{name}", (3, 4, 32), "experts", "matrix", packing="rows", bank="layers.0.leaves")
        for name in ("inward", "outward")
    ]


def matrix(*shape: int) -> Tensor:
    return Tensor(0, "o", shape, "attention", "matrix", packing="blocks")


ROUTER = Tensor(0, "router", (16, 32), "router", "router", packing="blocks")
NORM = Tensor(0, "ff_norm", (32,), "router", "norm", ".weight")


@pytest.mark.parametrize(
    ("stored", "promised", "message"),
    [
        ([(NORM, None), (matrix(16, 32), "q8")], [NORM], "has 'layers.0.o', which config.json does not promise"),
        ([(matrix(16, 32), "q8"), (NORM, None)], [matrix(16, 32)], "ff_norm.weight' is stored, which config.json"),
        ([(NORM, None)], [NORM, ROUTER], "'layers.0.router' is missing"),
        ([(ROUTER, "f32")], [ROUTER, NORM], "'layers.0.ff_norm.weight' is missing"),
        ([(ROUTER, "q8")], [ROUTER], "'layers.0.router' is q8, expected f32, f16 or bf16"),
        ([(matrix(32, 32), "q8")], [matrix(16, 32)], r"has q8 \(32, 32\), config.json says \(16, 32\)"),
        ([(NORM, None)], [Tensor(0, "ff_norm", (64,), "router", "norm", ".weight")], r"has F32 \(32,\), expected F32"),
        ([(matrix(16, 32), "q8"), (ROUTER, "f32")], [ROUTER, matrix(16, 32)], "in the order in which they are read"),
        (list(zip(bank_of_leaves(), ("q8", "q8"), strict=True)), bank_of_leaves()[::-1], "in the order in which"),
        (list(zip(bank_of_leaves(), ("q8", "f16"), strict=True)), bank_of_leaves(), "outward' is f16, expected q8 as"),
    ],
)
def test_files_hold_what_the_config_promises(path, stored, promised, message):
    entries = with_banks([PackedEntry(tensor, format) for tensor, format in stored])
    with PackedWriter(path, entries, METADATA) as writer:
        for entry in entries:
            dtype, shape = entry.stored
            writer.write(entry.name, np.zeros(shape, np.uint8 if dtype == "U8" else np.float32))
        writer.finish()
    with pytest.raises(CheckpointError, match=message):
        PackedFile(path, promised)


def test_other_files_are_not_packed(path):
    assert not is_packed(path)
    path.write_bytes(b"nonsense")
    assert not is_packed(path)
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path)
    assert not is_packed(path.parent)


@pytest.mark.parametrize(("columns", "align"), [(96, LINE), (6144, ALIGN)])
def test_experts_lie_one_behind_the_other(path, columns, align):
    """gate_up, right behind it down, then zeros up to the next cache line or page; written one by one or together."""
    shapes = {"gate_up": (3, 64, columns), "down": (3, columns, 32)}
    parts = [
        PackedEntry(
            Tensor(0, f"experts.{name}", shape, "experts", "matrix", packing="blocks", bank="layers.0.experts"), "q4"
        )
        for name, shape in shapes.items()
    ]
    entries = with_banks([ENTRIES[0], parts[0], parts[1], ENTRIES[2]])
    assert [entry.name for entry in entries] == ["embed", "layers.0.experts", "norm.weight"]
    bank = entries[1]
    assert isinstance(bank, BankEntry)
    matrices = list(arrays(parts).values())
    sizes = [matrix[0].nbytes for matrix in matrices]
    assert bank.stride % align == 0
    assert 0 <= bank.stride - sum(sizes) < align
    with PackedWriter(path, entries, METADATA) as writer:
        writer.write("embed", arrays()["embed"])
        writer.write(bank.name, bank.experts_of([matrix[:1] for matrix in matrices]))
        writer.write(bank.name, bank.experts_of([matrix[1:] for matrix in matrices]))
        writer.write("norm.weight", arrays()["norm.weight"])
        writer.finish()
    file = opened(path, entries)
    stored = file.tensor(bank.name)
    assert stored.shape == (3, bank.stride)
    for part, matrix, size, at in zip(parts, matrices, sizes, (0, sizes[0]), strict=True):
        assert file.offset(part.name) == bank.offset(part.name) == at
        np.testing.assert_array_equal(stored[:, at : at + size], matrix.reshape(3, -1))
    assert not stored[:, sum(sizes) :].any()
