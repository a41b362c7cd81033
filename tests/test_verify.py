"""Digests of packed files: one flipped bit is found by `verify`, and when a small file is loaded."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from fake_model import byte_tokenizer_folder
from test_pack import write
from test_packed import ENTRIES, METADATA, arrays, opened, pack
from typer.testing import CliRunner

import lapinfer.loading as loading
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.cli import app
from lapinfer.errors import CheckpointError
from lapinfer.loading import convert, load_model
from lapinfer.packing import integrity
from lapinfer.packing.integrity import DamagedError, LoadingCheck, damaged
from lapinfer.packing.writer import PackedWriter
from lapinfer.report.verify import verify, verify_all


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE_NAME


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def invoke(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_every_flipped_bit_of_a_file_is_found(path):
    """In each tensor, in the padding between them, and in the digests themselves."""
    pack(path)
    file = opened(path).stored
    assert damaged(file) == []
    for name, tensor in file.tensors.items():
        for at in (tensor.start, tensor.stop - 1):
            flip(path, at, bit=5)
            found = damaged(opened(path).stored)
            flip(path, at, bit=5)
            if name == integrity.DIGESTS:
                assert found == (["its header"] if at == tensor.start else [f"tensor {ENTRIES[-1].name!r}"])
            else:
                assert found == (["padding"] if name.startswith(".pad.") else [f"tensor {name!r}"])
    assert damaged(opened(path).stored) == []


def test_a_flipped_bit_of_the_header_is_found_where_it_can_still_be_read(path):
    pack(path)
    flip(path, path.read_bytes().index(b'"abc"') + 1)  # of the source's identity
    assert damaged(opened(path).stored) == ["its header"]


def test_digests_survive_a_packing_that_is_stopped(path):
    with PackedWriter(path, ENTRIES, METADATA) as writer:
        writer.write("embed", arrays()["embed"][:1])
        writer.write("embed", arrays()["embed"][1:])
        writer.write("layers.0.qkv", arrays()["layers.0.qkv"][:1])  # to be written again
    journal = path.with_name(f"{FILE_NAME}.journal")
    journal.write_text(journal.read_text() + 'not a digest "norm.weight"\n' + '00 ["x"]\n')
    pack(path)
    assert damaged(opened(path).stored) == []
    pack(path.with_name("whole"))
    assert path.read_bytes() == path.with_name("whole").read_bytes()


def test_files_without_digests_are_read_and_said_to_have_none(path):
    pack(path)
    stored = {name: value for name, value in safetensors.numpy.load_file(path).items() if name[0] != "."}
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    # As files of before were written: without the last tensor.
    from lapinfer.checkpoint.safetensors import layout
    from lapinfer.packing.entries import ALIGN

    header, places = layout([(e.name, *e.stored) for e in ENTRIES], metadata, ALIGN)
    with path.open("wb") as old:
        old.write(header)
        for name, value in stored.items():
            old.seek(places[name].start)
            old.write(value.tobytes())
    file = opened(path).stored
    with LoadingCheck(file) as check:
        check.finish()
    with pytest.raises(CheckpointError, match="has no digests, as it was packed by an older lapinfer"):
        damaged(file)


@pytest.mark.parametrize("shape", [(1, 32), (5, 31), (6, 32)])
def test_digests_of_a_wrong_shape_are_damage(path, shape, monkeypatch):
    pack(path)
    stored = {name: value for name, value in safetensors.numpy.load_file(path).items() if name[0] != "."}
    safetensors.numpy.save_file(stored | {".digests": np.zeros(shape, np.uint8)}, path)
    with pytest.raises(DamagedError, match=r"'\.digests' has U8"):
        damaged(integrity.SafetensorsFile(path))


def test_of_large_files_the_header_and_small_tensors_are_read(path, monkeypatch):
    pack(path)
    monkeypatch.setattr(integrity, "AT_ONCE", 0)
    monkeypatch.setattr(integrity, "SMALL", 300)
    file = opened(path).stored
    for name, is_found in (("embed", False), ("norm.weight", True), ("positions", True)):
        flip(path, file[name].stop - 1)
        with LoadingCheck(opened(path).stored) as check:
            if is_found:
                with pytest.raises(DamagedError, match=rf"tensor '{name}' differs from what was written: the file is"):
                    check.finish()
            else:
                check.finish()
        flip(path, file[name].stop - 1)


def test_a_check_that_gets_no_thread_runs_at_once(path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    pack(path)
    flip(path, opened(path).stored["embed"].start)
    monkeypatch.setattr(integrity.threading.Thread, "start", refuse)
    with LoadingCheck(opened(path).stored) as check, pytest.raises(DamagedError, match="'embed'"):
        check.finish()


@pytest.fixture
def no_models(monkeypatch):
    """Models are not built: only what is read of files counts. The files that they would be made of."""
    made = []

    class Nothing:
        compile_s = 0.0

        def __init__(self, spec, weights, limits, **about):
            made.append(weights.path)

        def close(self):
            made.append("closed")

    monkeypatch.setattr(loading, "Model", Nothing)
    return made


def load(folder, said):
    return load_model(folder, progress=lambda what, *counts: counts or said.append(what))


@pytest.mark.parametrize("where", ["weights", "header", "config"])
def test_a_damaged_copy_is_packed_again_with_a_notice(tmp_path, no_models, where):
    folder, said = write(tmp_path / "model").path, []
    load(folder, said)
    (copy,) = (tmp_path / "home" / "packed").iterdir()
    whole, said[:] = (copy / FILE_NAME).read_bytes(), []
    if where == "weights":
        flip(copy / FILE_NAME, len(whole) // 2)
    elif where == "header":
        (copy / FILE_NAME).write_bytes(whole.replace(b"[144,40]", b"[144,41]", 1))
    else:  # a copy's config is never read
        config = (copy / "config.json").read_text()
        (copy / "config.json").write_text(config.replace("10000.0", "10001.0"))
    load(folder, said)
    assert (copy / FILE_NAME).read_bytes() == whole
    if where == "config":
        assert said == []
        return
    assert said[0].startswith(f"note: {copy / FILE_NAME}: ")
    assert said[0].endswith("; packing it again")
    assert "\n" not in said[0]


def test_a_damaged_copy_is_let_go_before_it_is_replaced(tmp_path, no_models, kept_while_open):
    test_a_damaged_copy_is_packed_again_with_a_notice(tmp_path, no_models, "weights")


def test_damage_that_comes_back_says_what_to_delete(tmp_path, no_models, monkeypatch):
    folder = write(tmp_path / "model").path

    def finish(self):
        raise DamagedError("still damaged")

    monkeypatch.setattr(LoadingCheck, "finish", finish)
    with pytest.raises(
        DamagedError, match=r"still damaged \(a packed copy: lapinfer rm model-auto-.*, and it is packed "
    ):
        load(folder, [])
    assert no_models.count("closed") == 2


def test_a_damaged_folder_of_the_users_is_left_and_said(tmp_path, no_models):
    convert(write(tmp_path / "model").path, tmp_path / "packed", "q8")
    flip(tmp_path / "packed" / FILE_NAME, 100_000)
    before = (tmp_path / "packed" / FILE_NAME).read_bytes()
    with pytest.raises(DamagedError, match=r"tensor '.*' differs .*; convert the checkpoint again"):
        load(tmp_path / "packed", [])
    assert (tmp_path / "packed" / FILE_NAME).read_bytes() == before


def test_verify_reads_a_checkpoint_and_its_copies(tmp_path, no_models):
    folder = write(tmp_path / "model").path
    load(folder, [])
    (copy,) = (tmp_path / "home" / "packed").iterdir()
    done = invoke(folder)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"unchecked  {folder}: {FILE_NAME} agrees with its header in sizes; nobody has told what its weights are",
        f"ok         {copy.name}  {(copy / FILE_NAME).stat().st_size / 1e6:.1f} MB  {copy}",
    ]
    at = (copy / FILE_NAME).stat().st_size // 2
    flip(copy / FILE_NAME, at)
    done = invoke("--json", folder)
    assert done.exit_code == 1
    (problem,) = json.loads(done.stdout)[1]["problems"]
    assert problem.endswith(f"differs from what was written; lapinfer rm {copy.name}, and it is packed again")


def test_verify_without_names_reads_all_copies_and_what_is_shipped(tmp_path, no_models, monkeypatch):
    for name in ("one", "two"):
        load(write(tmp_path / name).path, [])
    copies = sorted((tmp_path / "home" / "packed").iterdir())
    (copies[1] / FILE_NAME).write_bytes(b"nonsense")
    (tmp_path / "home" / "packed" / "begun").mkdir()
    counts = []
    found = list(verify_all(lambda *what: counts.append(what)))
    assert [Path(each.path) for each in found[:2]] == copies
    assert [len(each.problems) for each in found] == [0, 1] + [0] * (len(found) - 2)
    assert [each.name for each in found[2:]] == ["austen-dense", "austen-dense-active", "austen-moe", "austen-fff"]
    assert not [each for each in found[2:] if each.unchecked]
    assert counts[-1][1] == counts[-1][2]


def test_verify_notices_a_changed_config(tmp_path):
    convert(write(tmp_path / "model").path, tmp_path / "packed", "q8")
    assert invoke(tmp_path / "packed").exit_code == 0
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    done = invoke(tmp_path / "packed")
    assert done.exit_code == 1
    assert "config.json, in what it says, differs from what was written; convert the checkpoint again" in done.stdout


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_texts_that_cannot_be_read_are_told(tmp_path, packed, name):
    folder = byte_tokenizer_folder(write(tmp_path / "model").path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    if packed:
        folder = convert(folder, tmp_path / "packed", "q8")
    assert invoke(folder).exit_code == 0
    whole = (folder / name).read_text()
    (folder / name).write_text(whole[: len(whole) // 2])
    done = invoke(folder)
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("damaged")]
    assert str(folder / name) in line


def test_files_of_the_hubs_cache_are_known_by_their_names(tmp_path):
    folder = write(tmp_path / "model").path
    import hashlib

    digest = hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()
    (tmp_path / "blobs").mkdir()
    shutil.move(folder / FILE_NAME, tmp_path / "blobs" / digest)
    (folder / FILE_NAME).symlink_to(tmp_path / "blobs" / digest)
    (found,) = verify(str(folder))
    assert (found.problems, found.unchecked) == ((), ())
    flip(tmp_path / "blobs" / digest, os.stat(tmp_path / "blobs" / digest).st_size - 1)
    (found,) = verify(str(folder))
    assert "has the digest" in found.problems[0]
    assert f"expected {digest[:16]}…; fetch it again" in found.problems[0]


def test_what_cannot_be_opened_is_damaged(tmp_path):
    folder = write(tmp_path / "model").path
    os.truncate(folder / FILE_NAME, 5000)
    done = invoke(folder, "nosuchmodel")
    assert done.exit_code == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["damaged", "damaged"]
    assert "download it again" in done.stdout
