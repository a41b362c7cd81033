"""Where lapinfer keeps files: variables, users without a home folder, and what is no folder."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from lapinfer.checkpoint import hub
from lapinfer.errors import CheckpointError, InputError
from lapinfer.home import expanded, home


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's --user 12345: no HOME, and no entry in the list of users."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "LAPINFER_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_a_user_without_a_home_is_told_what_to_set(nobody: None) -> None:
    with pytest.raises(InputError, match=r"HOME is not set.*set LAPINFER_HOME"):
        home()


@pytest.mark.parametrize("value", ["~/models", "~nobody-here/models"])
def test_a_tilde_that_means_nobody(nobody: None, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LAPINFER_HOME", value)
    with pytest.raises(InputError, match=f"LAPINFER_HOME={value}: nobody"):
        home()


def test_lapinfer_home_is_enough(nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "new"))
    assert home() == tmp_path / "new"
    monkeypatch.chdir(tmp_path)
    assert [model.kind for model in hub.list_local()] == ["shipped"] * len(hub.SHIPPED)
    assert not hub.is_local("smollm2")
    assert not hub.is_local("~nobody-here/model")
    with pytest.raises(CheckpointError, match="no such folder or file"):
        hub.resolve("~nobody-here/a/model")
    assert not list(tmp_path.iterdir())  # a folder called ~, say


def test_a_relative_folder_stays_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAPINFER_HOME", "here")
    assert home() == tmp_path / "here"


def test_a_file_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="is not a folder"):
        home()


def test_a_tilde_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAPINFER_HOME", "~/x")
    assert home() == tmp_path / "x"
    assert expanded("~nobody-here-at-all/x") == Path("~nobody-here-at-all/x")


def test_folders_of_others_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sudo -u leaves HOME as it was: another user's cache folder cannot be looked into."""

    def forbidden(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert all(model.kind == "shipped" for model in hub.list_local())
    assert os.environ["HF_HUB_CACHE"]
