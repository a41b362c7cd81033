"""Files that are cut while they are read: one line, nothing kept, and never a signal."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from fake_model import byte_tokenizer_folder
from test_pack import write
from test_packed import METADATA, opened, pack
from typer.testing import CliRunner

from lapinfer.calibration import pack_calibrated
from lapinfer.checkpoint import identity, reading
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.checkpoint.reading import ChangedError, OpenFile
from lapinfer.cli import app
from lapinfer.errors import CheckpointError
from lapinfer.packing import pack as packing
from lapinfer.packing.integrity import LoadingCheck, damaged
from lapinfer.report.verify import verify

CUT = r": changed while it was read: ends at byte \d+, expected \d+; run this again"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


def gguf_checkpoint(path):
    pytest.importorskip("gguf")
    import gguf_files

    from lapinfer.checkpoint.gguf import GGUFCheckpoint

    return GGUFCheckpoint(gguf_files.write(path, kind="Q8_0"))


SOURCES = {
    "safetensors": lambda folder: write(folder / "model"),
    "gguf": lambda folder: gguf_checkpoint(folder / "m.gguf"),
}


@pytest.mark.parametrize("positioned", [True, False], ids=["preadv", "seek"])
def test_bytes_are_those_of_the_file(tmp_path, monkeypatch, positioned):
    if not positioned:
        monkeypatch.delattr(os, "preadv", raising=False)
    content = np.random.default_rng(1).bytes(5000)
    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(reading, "STEP", 512)
    monkeypatch.setattr(reading, "MOST", 300)
    file = OpenFile(tmp_path / "x")
    assert file.read(7, 4001).tobytes() == content[7:4001]
    assert b"".join(map(bytes, file.pieces(3, 4000))) == content[3:4000]
    assert file.read(9, 9).nbytes == 0
    assert list(file.pieces(9, 9)) == []
    assert bytes(file.mapped) == content
    assert file.nbytes == file.opened.st_size == 5000
    os.truncate(tmp_path / "x", 4000)
    assert file.read(0, 4000).tobytes() == content[:4000]
    with pytest.raises(ChangedError, match="x: changed while it was read: ends at byte 4000, expected 4001; run this"):
        file.read(10, 4001)


@pytest.mark.parametrize("system", ["read", "no read"])
def test_what_the_system_refuses_is_told(tmp_path, monkeypatch, system):
    (tmp_path / "x").write_bytes(b"12345678")
    file = OpenFile(tmp_path / "x")
    if system == "no read":

        def refused(*arguments):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", refused)
        with pytest.raises(CheckpointError, match="x: cannot be read: Input/output error"):
            file.read(0, 8)
    else:
        os.truncate(tmp_path / "x", 3)
        with pytest.raises(ChangedError, match="ends at byte 3, expected 8"):
            _ = file.mapped


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("when", [0.0, 0.5])
@pytest.mark.parametrize("left", [0, 2000])
def test_a_source_that_is_cut_while_it_is_packed_makes_no_copy(tmp_path, source, when, left):
    checkpoint = SOURCES[source](tmp_path)
    (path,) = checkpoint.contents.paths

    def progress(phase, done, total):
        if phase == "packing" and when * total <= done < total:
            os.truncate(path, left)

    with pytest.raises(CheckpointError, match=path.name + CUT) as said:
        pack_calibrated(checkpoint, tmp_path / "packed", "q8", progress=progress)
    assert "\n" not in str(said.value)
    assert not [file for file in (tmp_path / "packed").iterdir() if file.name.startswith(FILE_NAME)]


def test_a_source_that_is_cut_before_its_identity_is_known(tmp_path, monkeypatch):
    for small in (identity.SMALL, 0):
        checkpoint = write(tmp_path / "model")
        monkeypatch.setattr(identity, "SMALL", small)
        os.truncate(tmp_path / "model" / FILE_NAME, 5000)
        with pytest.raises(ChangedError, match=CUT):
            checkpoint.contents.identity()


def test_the_command_says_so_and_ends_with_1(tmp_path, monkeypatch):
    write(tmp_path / "model")
    packed_slices = packing.packed_slices

    def cut_first(*arguments):
        os.truncate(tmp_path / "model" / FILE_NAME, 1000)
        return packed_slices(*arguments)

    monkeypatch.setattr(packing, "packed_slices", cut_first)
    byte_tokenizer_folder(tmp_path / "model")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "model"), str(tmp_path / "packed"), "--quant", "q8"])
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "ends at byte 1000, expected" in line


def test_a_packed_file_that_is_cut_while_it_is_verified(tmp_path, monkeypatch):
    pack_calibrated(write(tmp_path / "model"), tmp_path / "packed", "q8")
    monkeypatch.setattr(reading, "STEP", 256)

    def progress(name, done, total):
        os.truncate(tmp_path / "packed" / FILE_NAME, 20_000)

    (found,) = verify(str(tmp_path / "packed"), progress)
    (problem,) = found.problems
    assert "ends at byte 20000, expected" in problem


def test_a_source_that_is_cut_while_it_is_verified(tmp_path, monkeypatch):
    folder = write(tmp_path / "model").path
    digest = hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    shutil.move(folder / FILE_NAME, blob)
    (folder / FILE_NAME).symlink_to(blob)
    monkeypatch.setattr(reading, "STEP", 256)
    lines = verify(str(folder), lambda *counts: os.truncate(blob, 1000))
    (problem,) = next(lines).problems
    assert "ends at byte 1000, expected" in problem
    with pytest.raises(ChangedError, match=CUT):  # which copies are its own cannot be told either
        next(lines)


def test_a_packed_file_that_is_cut_while_it_is_loaded(tmp_path):
    path = tmp_path / FILE_NAME
    pack(path, metadata=METADATA)
    file = opened(path).stored
    assert damaged(file) == []
    os.truncate(path, 40_000)
    with LoadingCheck(file) as check, pytest.raises(ChangedError, match=CUT):
        check.finish()
