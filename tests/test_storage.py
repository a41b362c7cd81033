"""What is kept on disk: which copy belongs to which source, what goes by `rm` and `prune`, and what never does."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from test_pack import write
from typer.testing import CliRunner

from lapinfer import loading
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.home import home, hub_cache, packed_models, pulled_models
from lapinfer.kernels import cache, store
from lapinfer.options import LoadOptions
from lapinfer.packing import copies
from lapinfer.packing.copies import Use, cached_folder
from lapinfer.packing.entries import PackedEntry
from lapinfer.packing.reader import content_of
from lapinfer.packing.writer import PackedWriter
from lapinfer.storage.listing import sizes
from lapinfer.storage.owned import removed
from lapinfer.storage.prune import prunable
from lapinfer.storage.removal import owned_by
from lapinfer.tensors import Tensor
from lapinfer.text import prefixes

LONG_AGO = time.time() - 40 * 24 * 3600


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(cache, "store", lambda: store.Store("0" * 16, home() / "kernels" / ("0" * 16), None))


def checkpoint(folder: Path, value: float = 1.0) -> FolderCheckpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file({"a": np.full(3, value, np.float32)}, folder / FILE_NAME)
    return FolderCheckpoint(folder)


def packed(source: FolderCheckpoint, *, finished: bool = True, noted: bool = True) -> Path:
    """A copy with the name, header and note of one of `source`, of one small tensor."""
    folder = cached_folder(source, "q4", packed_models())
    if noted:
        Use(folder, source.path).close()
    metadata = {"quant": "q4", "source": source.contents.identity()}
    with PackedWriter(folder / FILE_NAME, [PackedEntry(Tensor(-1, "a", (3,), "head", "scalars"), None)], metadata) as w:
        w.write("a", np.ones(3, np.float32))
        if finished:
            w.finish()
    (folder / "config.json").write_text("{}")
    return folder


def in_hub(name: str = "org/name") -> Path:
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    checkpoint(folder / "snapshots" / "abc123")
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def remove(name: str) -> list[str]:
    """What is told where `rm NAME` cannot remove all of it."""
    return [problem for each in owned_by(name) if (problem := removed(each))]


def test_a_copy_goes_by_its_name_and_nothing_beside_it(tmp_path: Path) -> None:
    first, second = (packed(checkpoint(tmp_path / name, value)) for name, value in (("a", 1), ("b", 2)))
    (second / "mine.txt").write_text("")
    assert remove(first.name) == remove(str(second)) == []
    assert not first.exists()
    assert [path.name for path in second.iterdir()] == ["mine.txt"]
    assert (tmp_path / "a" / FILE_NAME).exists()


def test_of_a_users_own_files_only_the_copies_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "mine")
    folder = packed(source)
    (model,) = [model for model in sizes().models if model.kind == "yours"]
    assert (model.name, [copy.name for copy in model.copies]) == (str(source.path), [folder.name])
    monkeypatch.chdir(tmp_path)
    assert remove("mine") == []
    assert not folder.exists()
    assert sorted(path.name for path in source.path.iterdir()) == ["config.json", FILE_NAME]
    with pytest.raises(InputError, match="is yours, and has no packed copy"):
        owned_by("mine")


def test_a_model_of_the_hub_goes_with_its_copies_and_locks(tmp_path: Path) -> None:
    entry, other = in_hub(), in_hub("org/name2")
    copy = packed(FolderCheckpoint(entry / "snapshots" / "abc123"))
    (hub_cache() / ".locks" / entry.name).mkdir(parents=True)
    assert remove("org/name") == []
    assert not entry.exists()
    assert not copy.exists()
    assert other.exists()
    assert not any((hub_cache() / ".locks").iterdir())


def test_half_a_download_can_be_removed() -> None:
    folder = hub_cache() / "models--org--half" / "blobs"
    folder.mkdir(parents=True)
    (folder / "x.incomplete").write_bytes(bytes(100))
    assert [(m.name, m.kind, m.bytes) for m in sizes().models if m.kind == "half"] == [("org/half", "half", 100)]
    assert remove("org/half") == []
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["..", "../home", "org/..", "packed", "nonsense", "", "/", "models--org--name", "a" * 999]
)
def test_names_that_are_nothing_remove_nothing(tmp_path: Path, name: str) -> None:
    entry, copy = in_hub(), packed(checkpoint(tmp_path / "a"))
    with pytest.raises(InputError) as caught:
        owned_by(name)
    assert "\n" not in str(caught.value)
    assert entry.exists()
    assert copy.exists()


def test_what_others_put_into_the_home_stays(tmp_path: Path) -> None:
    mine = pulled_models() / "mine"
    mine.mkdir(parents=True)
    (mine / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="not put there by lapinfer"):
        owned_by("mine")
    target = packed(checkpoint(tmp_path / "a")).rename(tmp_path / "elsewhere")
    (packed_models() / "link").symlink_to(target)
    with pytest.raises(InputError, match="is a link"):
        owned_by("link")
    with pytest.raises(InputError, match="comes with lapinfer"):
        owned_by("austen-fff")


def test_links_inside_a_copy_are_not_followed(tmp_path: Path) -> None:
    copy, precious = packed(checkpoint(tmp_path / "a")), tmp_path / "precious"
    precious.mkdir()
    (precious / "x.jinja").write_text("")
    (copy / "additional_chat_templates").symlink_to(precious)
    (copy / "tokenizer.json").symlink_to(precious / "x.jinja")
    assert remove(copy.name) == []
    assert (precious / "x.jinja").exists()


def test_what_is_in_use_stays_whole(tmp_path: Path) -> None:
    copy = packed(checkpoint(tmp_path / "a"))
    before = sorted(copy.iterdir())
    with Use(copy):
        (problem,) = remove(copy.name)
        assert "in use by process" in problem
        assert sorted(copy.iterdir()) == before
        assert not list(prunable(0))
    assert remove(copy.name) == []
    assert not copy.exists()


def test_a_loaded_model_keeps_its_copy(tmp_path: Path) -> None:
    source = str(write(tmp_path / "model").path)
    found = loading.packed(source, LoadOptions(quant="f16"), lambda *told: None)
    folder, (_, weights) = found.folder, loading._read_packed(found, print)
    del found
    (problem,) = remove(source)
    assert "in use by process" in problem
    assert weights.names()
    del weights
    gc.collect()
    assert remove(source) == []
    assert not folder.exists()


def test_who_waited_for_a_removal_gets_a_new_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock was had on a file that is no longer there."""
    copy, real, waited = packed(checkpoint(tmp_path / "a")), copies.wait_for_lock, []

    def wait(descriptor: int, told: object, *, shared: bool) -> None:
        if not waited:
            assert remove(copy.name) == []
        waited.append(descriptor)
        real(descriptor, print, shared=shared)

    monkeypatch.setattr(copies, "wait_for_lock", wait)
    with Use(copy, tmp_path / "a"):
        assert len(waited) == 2
        assert copies.sources(copy) == [tmp_path / "a"]


def test_where_nothing_can_be_written_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, real = packed(checkpoint(tmp_path / "a"), noted=False), os.open

    def read_only(path: str, flags: int, *more: int, **named: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    Use(copy, tmp_path / "a").close()
    assert copies.last_used(copy) is None


def test_a_note_is_never_trusted(tmp_path: Path) -> None:
    copy = packed(checkpoint(tmp_path / "a"), noted=False)
    (copy / copies.NOTE).write_bytes(b'\xff\n[1]\n""\n"\\u0000"\n"/gone"\n' + b"x" * 100_000)
    assert copies.sources(copy) == [Path("/gone")]
    Use(copy, tmp_path / "a").close()  # it is full
    assert copies.sources(copy) == [Path("/gone")]


def reasons(days: float | None = None) -> dict[str, str]:
    return {each.what.split()[-1] if "copy" in each.what else each.what: each.why for each in prunable(days)}


def test_copies_that_are_of_no_more_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, gone, changed = (packed(checkpoint(tmp_path / name, value)) for value, name in enumerate(("a", "b", "c")))
    unknown = packed(checkpoint(tmp_path / "d", 4), noted=False)
    half = packed(checkpoint(tmp_path / "e", 5), finished=False)
    (tmp_path / "b").rename(tmp_path / "b2")
    checkpoint(tmp_path / "c", 7)
    found = reasons()
    assert set(found) == {gone.name, changed.name, half.name}
    assert str(tmp_path / "b") in found[gone.name]
    assert "has changed" in found[changed.name]
    assert "broken off" in found[half.name]
    checkpoint(tmp_path / "c", 2)
    for copy in (good, unknown):
        for path in (copy, *copy.iterdir()):
            os.utime(path, (LONG_AGO, LONG_AGO))
    assert set(reasons(30)) == {gone.name, half.name, good.name, unknown.name}
    assert set(reasons(50)) == {gone.name, half.name}
    monkeypatch.setattr(copies, "LAYOUT", 99)
    assert "of an older lapinfer" in reasons()[good.name]


def test_what_else_is_of_no_more_use(tmp_path: Path) -> None:
    def write(path: Path, data: bytes = b"x", *, old: bool = True) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if old:
            for each in (path, path.parent):
                os.utime(each, (LONG_AGO, LONG_AGO))
        return path

    code, key = store.MAGIC + b"x", prefixes.arithmetic() + "0" * 40
    stay = [
        write(home() / "kernels" / cache.version() / "k.nbi", code),
        write(home() / "kernels" / ("1" * 16) / "mine.nbi"),
        write(home() / "prefixes" / key / "a.prefix", old=False),
        write(home() / "gguf" / f"m-{'0' * 16}-4" / "config.json"),
        write(home() / "calibration" / "new" / FILE_NAME, old=False),
        write(home() / "chat_history"),
    ]
    go = [
        write(home() / "kernels" / ("1" * 16) / "k.nbi", code),
        write(home() / "prefixes" / ("0" * 32) / "a.prefix"),
        write(home() / "gguf" / f"m-{'0' * 16}-1" / "config.json"),
        write(home() / "calibration" / "old" / FILE_NAME),
        write(home() / "identities" / "a.b.partial"),
    ]
    (home() / "kernels" / ("2" * 16)).symlink_to(tmp_path)
    found = list(prunable())
    assert (
        [removed(each) for each in found] == [removed(each) for each in found] == [None] * 5
    )  # as two processes would
    assert all(path.exists() for path in stay)
    assert not any(path.exists() for path in go)
    assert not go[1].parent.exists()


def test_beginnings_of_prompts_go_with_their_model(tmp_path: Path) -> None:
    from lapinfer.checkpoint.safetensors import SafetensorsFile

    copy = packed(checkpoint(tmp_path / "a"))
    content = content_of(SafetensorsFile(copy / FILE_NAME))
    assert content is not None
    mine, other = (
        home() / "prefixes" / f"{prefixes.arithmetic()}{digits}{'0' * 32}" for digits in (content[:8], "0" * 8)
    )
    for folder in (mine, other):
        folder.mkdir(parents=True)
        (folder / "a.prefix").write_bytes(bytes(10))
    assert remove(copy.name) == []
    assert (mine.exists(), other.exists()) == (False, True)


def test_the_commands_ask_or_want_yes(tmp_path: Path) -> None:
    copy = packed(checkpoint(tmp_path / "a"))
    result = invoke("rm", copy.name)
    assert result.exit_code == 2
    assert copy.name in result.stdout
    assert "--yes" in result.stderr
    result = invoke("rm", copy.name, "nonsense", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert copy.exists()
    result = invoke("rm", copy.name, "--yes", "--json")
    value = json.loads(result.stdout)
    assert (result.exit_code, value["removed"], value["problems"]) == (0, True, [])
    assert value["items"][0]["path"] == str(copy)
    assert not copy.exists()


def test_prune_lists_before_it_removes(tmp_path: Path) -> None:
    copy = packed(checkpoint(tmp_path / "a"), finished=False)
    result = invoke("prune")
    assert (result.exit_code, copy.exists()) == (0, True)
    assert "broken off" in result.stdout
    assert json.loads(invoke("prune", "--json").stdout)["removed"] is False
    assert invoke("prune", "--yes").exit_code == 0
    assert not copy.exists()
    assert "nothing to remove" in invoke("prune", "--yes").stdout


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = packed(checkpoint(tmp_path / "a"))

    def refuse(path: object, **named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    result = invoke("rm", copy.name, "--yes")
    assert result.exit_code == 1
    assert f"{FILE_NAME}: cannot be removed: Read-only file system" in result.stderr


def test_sizes_are_those_of_the_disk(tmp_path: Path) -> None:
    copy, entry = packed(checkpoint(tmp_path / "a")), in_hub()
    blob = entry / "blobs" / hashlib.sha256(b"").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(bytes(1000))
    (entry / "snapshots" / "abc123" / "twice").symlink_to(blob)
    os.link(blob, entry / "hard")
    found = json.loads(invoke("ls", "--sizes", "--json").stdout)
    models = {model["name"]: model for model in found["models"]}
    expected = sum(min(path.stat().st_size, 512 * path.stat().st_blocks) for path in copy.iterdir())
    assert models[str(tmp_path / "a")]["packed_bytes"] == expected
    rest = sum(
        path.stat().st_size for path in entry.rglob("*") if path.is_file() and path.name not in ("hard", "twice")
    )
    assert models["org/name"]["bytes"] == rest
    assert found["total"] == expected + rest + found["other"]
    assert models[str(tmp_path / "a")]["used"] == pytest.approx(time.time(), abs=60)
    assert "beginnings of prompts" in invoke("ls", "--sizes").stdout


def test_a_home_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "file"))
    for arguments in (("ls", "--sizes"), ("prune",), ("rm", "x", "--yes")):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "is not a folder" in result.stderr
