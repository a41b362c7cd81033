"""Downloads from a hub: what is needed, and nothing else; what breaks off goes on; what comes wrong does not count."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hub_server import COMMIT, Hub, hub_server
from typer.testing import CliRunner

from lapinfer.checkpoint import fetch, hub
from lapinfer.checkpoint.fetch import Wanted, fetch_all
from lapinfer.cli import app
from lapinfer.errors import CheckpointError, DoesNotFitError, UnsupportedError
from lapinfer.home import hub_cache
from lapinfer.report.verify import verify

pytest.importorskip("huggingface_hub")

WEIGHTS = safetensors.numpy.save({"a": np.arange(20_000, dtype=np.float32)})
FILES = {
    "config.json": b"{}", "model.safetensors": WEIGHTS, "generation_config.json": b'{"top_k": 1}', "README.md": b"x",
    "consolidated.safetensors": b"x" * 99, "pytorch_model.bin": b"x" * 99, "onnx/model.safetensors": b"x" * 99,
}  # fmt: skip


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(FILES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def pulled(name: str = "org/name") -> tuple[Path, list[str], list[tuple[int, int]]]:
    """Where it is, what was said, and what progress was told."""
    said: list[str] = []
    counts: list[tuple[int, int]] = []

    def told(what: str, *both: int) -> None:
        if both:
            assert what == f"pulling {name}"
            counts.append((both[0], both[1]))
        else:
            said.append(what)

    return hub.pull(name, told), said, counts


def test_what_is_needed_is_fetched_and_nothing_else(remote: Hub) -> None:
    path, said, counts = pulled()
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert os.readlink(path / "model.safetensors") == f"../../blobs/{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert (path.parent.parent / "refs" / "main").read_text() == COMMIT
    assert said == []
    assert counts[-1] == (len(WEIGHTS) + 14, len(WEIGHTS) + 14)
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    asked = len(remote.keys)
    assert hub.pull("org/name") == path
    assert len(remote.keys) == asked
    assert [model.name for model in hub.list_local() if model.kind == "hub"] == ["org/name"]


def test_the_client_of_the_hub_finds_it(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    path, *_ = pulled()
    found = huggingface_hub.snapshot_download("org/name", local_files_only=True, cache_dir=str(hub_cache()))
    assert Path(found) == path


def test_a_key_goes_to_the_hub_alone(remote: Hub) -> None:
    pulled()
    assert {key for path, key in remote.keys if path.startswith("/store/")} == {None}
    assert {key for path, key in remote.keys if not path.startswith("/store/")} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(["cut"], "ended early"), (["cut", "cut"], "ended early"), (["429"], "HTTP 429"), (["503", "500"], "HTTP 503")],
)
def test_what_breaks_off_goes_on(remote: Hub, trouble: list[str], words: str) -> None:
    remote.trouble["model.safetensors"] = list(trouble)
    path, said, _ = pulled()
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(said) == len(trouble)
    assert words in said[0]
    ranges = [range_ for name, range_ in remote.asked if name == "model.safetensors"]
    assert ranges[0] is None
    if trouble[0] == "cut":
        assert ranges[1] == f"bytes={len(WEIGHTS) // 2}-"


def test_a_pull_that_is_killed_goes_on(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CHUNK", 1000)

    def stop(what: str, done: int, total: int) -> None:
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("org/name", stop)
    assert not hub.is_local("org/name")
    (half,) = hub_cache().glob("models--org--name/blobs/*.incomplete")
    there = half.stat().st_size
    path, said, counts = pulled()
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert remote.asked[-1] == ("model.safetensors", f"bytes={there}-")
    assert any(done >= there for done, _ in counts)
    assert said == []
    assert not half.exists()


def test_damage_is_told_and_fetched_again(remote: Hub) -> None:
    remote.trouble["model.safetensors"] = ["wrong"]
    path, said, _ = pulled()
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(said) == 1
    assert "came damaged" in said[0]
    shutil.rmtree(path.parent.parent)
    remote.trouble["config.json"] = ["wrong", "wrong"]
    with pytest.raises(CheckpointError, match=r"org/name/config.json: came damaged .* twice"):
        pulled()
    assert not hub.is_local("org/name")


def test_what_is_here_of_another_file_does_not_count(remote: Hub) -> None:
    blob = hub_cache() / "models--org--name" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    blob.parent.mkdir(parents=True)
    for content in (b"other" * 100, WEIGHTS[:-1] + b"?", bytes(2 * len(WEIGHTS))):
        blob.with_name(f"{blob.name}.incomplete").write_bytes(content)
        path, *_ = pulled()
        assert (path / "model.safetensors").read_bytes() == WEIGHTS
        blob.unlink()


def test_a_server_without_ranges(remote: Hub) -> None:
    remote.trouble["model.safetensors"] = ["cut", "whole"]
    path, _, _ = pulled()
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_never_answers_is_given_up(remote: Hub) -> None:
    remote.trouble["model.safetensors"] = ["500"] * fetch.TRIES
    with pytest.raises(CheckpointError, match=r"cannot be fetched, HTTP 500 .*the same command goes on") as caught:
        pulled()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (401, "RepoNotFound", "no such model on the hub, or it is private"),
        (404, "RepoNotFound", "no such model on the hub, or it is private"),
        (403, "GatedRepo", "accept its terms"),
        (401, "GatedRepo", "accept its terms"),
        (401, "", "log in"),
        (400, "x", "answers 400"),
    ],
)
def test_refusals_are_a_line(remote: Hub, code: int, kind: str, words: str) -> None:
    remote.refused = code, kind
    result = CliRunner().invoke(app, ["pull", "org/name"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "hf_secret" not in result.stderr


def test_without_the_client_of_the_hub_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'downloading it needs: pip install "lapinfer\[hub\]"'):
        pulled()


def test_a_hub_that_cannot_be_reached_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({}) as server:
        gone = server.url
    monkeypatch.setenv("HF_ENDPOINT", gone)
    with pytest.raises(CheckpointError, match="the hub cannot be reached") as caught:
        pulled()
    assert "\n" not in str(caught.value)


def test_a_name_in_a_folder_that_is_here_tells_of_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({}) as server:
        gone = server.url
    monkeypatch.setenv("HF_ENDPOINT", gone)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel").mkdir()
    with pytest.raises(CheckpointError, match=r"^novel/model: not in the folder novel, and no model of the hub: "):
        hub.resolve("novel/model")
    (tmp_path / "novel" / "run.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"^novel: is a training of lapinfer that is not over"):
        hub.resolve("novel/model")


def test_a_gated_file_of_an_open_list(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from lapinfer.checkpoint import repository

    found = repository.look_at("org/name")
    monkeypatch.setattr(repository, "look_at", lambda name: found)
    remote.refused = 401, "GatedRepo"
    with pytest.raises(CheckpointError, match="accept its terms"):
        pulled()


def test_a_disk_that_is_too_small_is_told_before(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, fetch.SPARE + 10))
    with pytest.raises(DoesNotFitError, match=r"are still to be fetched, 67.1 MB are free there"):
        pulled()
    assert remote.asked == []


def test_shards_are_those_of_the_index(remote: Hub) -> None:
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    remote.files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00001.safetensors": WEIGHTS,
        "extra.safetensors": b"x",
    }
    path, *_ = pulled()
    assert {file.name for file in path.iterdir()} == set(remote.files) - {"extra.safetensors"}
    shutil.rmtree(path.parent.parent)
    del remote.files["model-00001-of-00001.safetensors"]
    with pytest.raises(CheckpointError, match=r"names 'model-00001-of-00001.safetensors', which the repository lacks"):
        pulled()


def test_gguf_models_are_told_by_a_part_of_their_names(remote: Hub) -> None:
    remote.files = {f"m-{quant}.gguf": b"GGUF" + quant.encode() for quant in ("Q4_0", "Q8_0", "Q8_0_L")}
    remote.files["mmproj-m.gguf"] = b"GGUF"
    with pytest.raises(CheckpointError, match=r"has 3 models in \.gguf files: m-Q4_0\.gguf \(8 B\).*org/name:Q8_0"):
        pulled()
    with pytest.raises(CheckpointError, match="none has Q5"):
        pulled("org/name:Q5")
    path, *_ = pulled("org/name:q8_0")
    assert (path.name, path.read_bytes()) == ("m-Q8_0.gguf", b"GGUFQ8_0")
    assert hub.pull("org/name:Q8_0") == hub.pull("org/name") == path
    assert hub.is_local("org/name:q8")


def test_hostile_lists_name_no_files(remote: Hub) -> None:
    remote.files = {"../config.json": b"{}", "/etc/model.safetensors": b"x", "a\\b.gguf": b"x", "m\n.gguf": b"x"}
    with pytest.raises(CheckpointError, match=r"no commit and no files|nothing else is read"):
        pulled()


def test_two_at_once_fetch_once(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first's lock, and finds that all is there."""
    target = hub_cache() / "file"
    wanted = Wanted(
        "m", f"{remote.url}/store/model.safetensors", target, len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()
    )
    real, said = fetch.wait_for_lock, []

    def wait(descriptor: int, told: object) -> None:
        if not said:
            said.append("waited")
            fetch_all([wanted], lambda *counts: None, print)
        real(descriptor, print)

    monkeypatch.setattr(fetch, "wait_for_lock", wait)
    fetch_all([wanted], lambda *counts: None, print)
    assert target.read_bytes() == WEIGHTS
    assert len(remote.asked) == 1
    assert [path.name for path in hub_cache().iterdir()] == ["file"]


def test_the_rate_is_that_of_the_last_second() -> None:
    now = [0.0]
    rate = fetch.Rate(lambda: now[0])
    said = []
    for now[0], done in ((0.5, 10), (1.0, 2e6), (1.5, 9e6), (3.0, 10e6), (4.0, 5e6)):
        said.append(rate.told(done))
    assert said == ["", "2.0 MB/s", "2.0 MB/s", "4.0 MB/s", "0 B/s"]


def test_verify_knows_what_the_hub_has_told(remote: Hub) -> None:
    path, *_ = pulled()
    (found,) = verify("org/name")
    assert (found.problems, found.unchecked) == ((), ())
    for name in ("model.safetensors", "generation_config.json"):
        blob = Path(os.path.realpath(path / name))
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (found,) = verify("org/name")
        assert any(name in problem and "fetch it again" in problem for problem in found.problems)
        blob.write_bytes(content)
