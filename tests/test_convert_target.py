"""Where `convert` writes to: never over the source, nor over what somebody else has put there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_pack import UP, write
from typer.testing import CliRunner

from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.loading import convert
from lapinfer.packing.reader import read_packed


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(tmp_path):
    folder = write(tmp_path / "source").path
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, links as what they lead to."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def itself(source, tmp_path):
    return source


def a_link(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    return tmp_path / "link"


def another_name(source, tmp_path):
    return source / ".." / source.name


def the_blobs_of_a_snapshot(source, tmp_path):
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(source.iterdir()):
        os.replace(file, tmp_path / "blobs" / str(i))
        file.symlink_to(tmp_path / "blobs" / str(i))
    return tmp_path / "blobs"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("target", [itself, a_link, another_name, the_blobs_of_a_snapshot])
def test_a_source_is_never_its_own_target(tmp_path, source, target, force):
    folder = target(source, tmp_path)
    before = contents(source)
    with pytest.raises(InputError, match=r"is the folder of .*, which is to be packed; name another"):
        convert(source, folder, "q8", force=force)
    assert contents(source) == before


def test_a_gguf_file_beside_others_is_no_target(tmp_path):
    pytest.importorskip("gguf")
    import gguf_files

    folder = tmp_path / "files"
    folder.mkdir()
    gguf_files.write(folder / "one.gguf")
    (folder / "two.gguf").write_bytes(b"GGUF of somebody's")
    before = contents(folder)
    for force in (False, True):
        with pytest.raises(InputError, match=r"is the folder of one\.gguf"):
            convert(folder / "one.gguf", folder, "q8", force=force)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "x.gguf", "pytorch_model.bin"]
)
def test_another_checkpoints_folder_is_refused_whatever_is_said(tmp_path, source, name):
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_text("weights")
    for force in (False, True):
        with pytest.raises(InputError, match=f"has {name}, the weights of another checkpoint; name a new folder"):
            convert(source, target, "q8", force=force)
    assert contents(target) == {name: b"weights"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (FILE_NAME, "weights that lapinfer did not pack"),
        (f"{FILE_NAME}.partial", "not begun by lapinfer"),
        (f"{FILE_NAME}.journal", "not begun by lapinfer"),
        ("config.json", "not that of the checkpoint"),
        ("tokenizer.json", "not that of the checkpoint"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "link", "hard link"])
def test_files_in_the_way_go_only_by_force(tmp_path, source, name, what, kind):
    target, other = tmp_path / "target", tmp_path / "precious"
    target.mkdir()
    other.write_bytes(b"somebody's")
    if kind == "file":
        (target / name).write_bytes(b"somebody's")
    else:
        (os.symlink if kind == "link" else os.link)(other, target / name)
    with pytest.raises(InputError, match=rf"{name} is there already: .*{what}; .*--force"):
        convert(source, target, "q8")
    assert contents(target) == {name: b"somebody's"}
    said = []
    convert(source, target, "q8", force=True, progress=lambda *args: said.append(args))
    (line,) = [what[0] for what in said if len(what) == 1 and what[0].startswith("--force")]
    assert line.startswith(f"--force: {target / name}, a ")
    assert line.endswith("is replaced")
    assert other.read_bytes() == b"somebody's"
    read_packed(target)
    assert sorted(contents(target)) == ["config.json", FILE_NAME, "tokenizer.json"]


def test_other_files_of_the_folder_stay(tmp_path, source):
    target = tmp_path / "target"
    target.mkdir()
    (target / "NOTES.md").write_text("mine")
    convert(source, target, "q8")
    assert (target / "NOTES.md").read_text() == "mine"


def test_our_own_packed_form_is_replaced_but_not_that_of_another_checkpoint(tmp_path, source):
    target = tmp_path / "target"
    for quant in ("q8", "q8", "f16"):
        convert(source, target, quant)
        assert read_packed(target)[1].metadata["quant"] == quant
    other = write(tmp_path / "other", **{UP: np.zeros((90, 40), np.float32)}).path
    before = contents(target)
    with pytest.raises(InputError, match=r"the packed form of another checkpoint; .*--force"):
        convert(other, target, "q8")
    assert contents(target) == before


def test_below_the_source_and_above_it_nothing_is_in_the_way(tmp_path, source):
    before = contents(source)
    convert(source, source / "packed", "q8")
    assert {name: file for name, file in contents(source).items() if not name.startswith("packed")} == before
    convert(source, tmp_path, "q8")
    assert (tmp_path / FILE_NAME).is_file()
    read_packed(source / "packed")


def test_texts_of_a_conversion_are_the_sources_and_additional_templates_come_along(tmp_path, source):
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    convert(source, tmp_path / "target", "q8")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    convert(source, tmp_path / "target", "q8")
    packed = contents(tmp_path / "target")
    assert packed["additional_chat_templates/tools.jinja"] == b"{{ tools }}"
    assert packed["chat_template.jinja"] == b"{{ messages }}"
    (source / "chat_template.jinja").write_text("{{ changed }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja is there already: .* not that of the checkpoint"):
        convert(source, tmp_path / "target", "q8")
    convert(source, tmp_path / "target", "q8", force=True)
    assert contents(tmp_path / "target")["chat_template.jinja"] == b"{{ changed }}"


def test_texts_are_not_written_through_a_linked_folder(tmp_path, source):
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "target").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target" / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link, which is not written through"):
        convert(source, tmp_path / "target", "q8", force=True)
    assert not contents(tmp_path / "elsewhere")


def test_a_conversion_that_fails_leaves_no_checkpoint(tmp_path):
    source = write(tmp_path / "source", **{UP: np.full((90, 40), np.nan, np.float32)}).path
    with pytest.raises(Exception, match="not numbers"):
        convert(source, tmp_path / "target", "q8")
    assert sorted(contents(tmp_path / "target")) == [f"{FILE_NAME}.journal", f"{FILE_NAME}.partial"]


def test_the_command_says_which_file_goes(tmp_path, source):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({"somebody": "else"}))
    refused = CliRunner().invoke(app, ["convert", str(source), str(target), "--quant", "q8"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith(f"error: {target / 'config.json'} is there already: a file of 20 bytes, not that")
    done = CliRunner().invoke(app, ["convert", str(source), str(target), "--quant", "q8", "--force"])
    assert done.exit_code == 0
    assert f"--force: {target / 'config.json'}, a file of 20 bytes, is replaced\n" in done.stderr
