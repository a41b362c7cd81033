"""Folders of the cache that are made once, such as the tokenizer of a GGUF file: damaged ones are made again."""

import os

import pytest

from lapinfer.checkpoint import sealed
from lapinfer.checkpoint.sealed import sealed_folder

TEXTS = {"tokenizer.json": "{}", "config.json": '{"é": 1}'}


@pytest.fixture
def made():
    return []


@pytest.fixture
def make(made):
    def files():
        made.append(1)
        return TEXTS

    return files


def test_it_is_made_once(tmp_path, make, made):
    folder = tmp_path / "home" / "x"
    for _ in range(3):
        assert sealed_folder(folder, make) == folder
    assert len(made) == 1
    assert {name: (folder / name).read_text(encoding="utf-8") for name in TEXTS} == TEXTS
    assert os.listdir(folder.parent) == ["x"]


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "no digests", "nonsense", "a list"])
def test_a_damaged_one_is_made_again(tmp_path, make, made, damage):
    folder = sealed_folder(tmp_path / "x", make)
    if damage == "changed":
        (folder / "tokenizer.json").write_text("{ }")
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "more":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    elif damage == "no digests":  # as older versions made them
        (folder / sealed.SUMS).unlink()
    else:
        (folder / sealed.SUMS).write_text("nonsense" if damage == "nonsense" else "[1]")
    sealed_folder(folder, make)
    assert len(made) == 2
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert sorted(os.listdir(folder)) == sorted([*TEXTS, sealed.SUMS])
    assert os.listdir(tmp_path) == ["x"]


def test_another_process_may_be_first(tmp_path, make, monkeypatch):
    folder, replace = tmp_path / "x", os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", replace)
        sealed_folder(folder, make)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(os, "replace", late)
    assert sealed_folder(folder, make) == folder
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_what_cannot_be_made_is_an_error_and_leaves_nothing(tmp_path, make, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        sealed_folder(tmp_path / "x", make)
    assert os.listdir(tmp_path) == []
