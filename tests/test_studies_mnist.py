"""Studies of MNIST on a small synthetic data set: figures, going on, bad input, and the engine against PyTorch."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lapinfer.errors import CheckpointError, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from bench.studies import classify, engine, table1, table2  # noqa: E402
from bench.studies.__main__ import app  # noqa: E402
from bench.studies.classify import pixels  # noqa: E402
from bench.studies.data import read_mnist  # noqa: E402
from bench.studies.study import Setting, find_study, run_study  # noqa: E402
from lapinfer.train.config import Mixture, Trees  # noqa: E402

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
STUDIES = {"table1": table1, "table2": table2}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def write_mnist(folder: Path, train: int = 600, test: int = 200, zipped: bool = True) -> Path:
    """Ten blurred patterns with noise: something that a small network learns in a few epochs."""
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 28, 28)) < 0.3
    folder.mkdir(exist_ok=True)
    for count, (images, labels) in zip((train, test), (FILES[:2], FILES[2:]), strict=True):
        y = rng.integers(0, 10, count).astype(np.uint8)
        x = (rng.random((count, 28, 28)) * (80 + 175 * patterns[y])).astype(np.uint8)
        for name, values in ((images, x), (labels, y)):
            content = idx(values)
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content, 1) if zipped else content)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def few(monkeypatch: pytest.MonkeyPatch, module: Any, count: int) -> list[str]:
    """Let a study have its first trials alone, and run them here; the names of those that are run."""
    trials, train, names = module.STUDY.trials, module.STUDY.run, []

    def run(arguments: dict[str, Any], images: Any, folder: Path) -> dict[str, Any]:
        names.append(folder.name)
        return train(arguments, images, folder)

    study = find_study(module.STUDY.name)
    changed = {"trials": lambda data, setting: trials(data, setting)[:count], "run": run}
    fields = {name: getattr(study, name) for name in study.__dataclass_fields__} | changed
    monkeypatch.setattr(module, "STUDY", type(study)(**fields))
    return names


# ---- data ----


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_read_zipped_or_not(zipped: bool, tmp_path: Path) -> None:
    images = read_mnist([write_mnist(tmp_path, 30, 20, zipped)])
    assert images.train.shape == (30, 1, 28, 28)
    assert images.test.shape == (20, 1, 28, 28)
    assert (len(images.train_labels), len(images.test_labels)) == (30, 20)
    x = pixels(images.train)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.reshape(-1), images.train.reshape(-1) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"train-images-idx3-ubyte: no such file, nor with .gz; expected a folder with"),
        (lambda path: path.write_bytes(b"what?"), r"train-images-idx3-ubyte.gz: expected a gzipped idx file \("),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), r"expected a gzipped idx file \("),
        (lambda path: path.write_bytes(gzip.compress(b"")), r"begins with 00 00 08 03, got nothing \(0 bytes\)"),
        (lambda path: path.write_bytes(gzip.compress(b"garbage" * 9)), r"got 67 61 72 62 \(63 bytes\)"),
        (
            lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5])),
            r"expected 16 \+ 30 × 28 × 28 bytes, got 23531: cut off\?",
        ),
        (
            lambda path: path.write_bytes(gzip.compress(idx(np.zeros((29, 28, 28), np.uint8)))),
            r"got train images of shape \(29, 28, 28\) and 30 labels",
        ),
        (
            lambda path: path.write_bytes(gzip.compress(idx(np.zeros((30, 8, 8), np.uint8)))),
            r"expected as many images of 28 × 28 as labels",
        ),
    ],
)
@pytest.mark.parametrize("name", list(STUDIES))
def test_bad_files_are_named_before_anything_is_made(name: str, damage: Any, message: str, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "data", 30, 20)
    damage(folder / f"{FILES[0]}.gz")
    with pytest.raises(InputError, match=message) as caught:
        run_study(find_study(name), Setting((folder,), 1, True), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_bad_data(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "data", 30, 20)
    for given, message in (((), "got 0"), ((folder, folder), "got 2"), ((tmp_path / "gone",), "gone: no such folder")):
        with pytest.raises(InputError, match=message):
            run_study(table1.STUDY, Setting(given, 1, True), tmp_path / "out")
    (folder / f"{FILES[3]}.gz").write_bytes(gzip.compress(idx(np.full(20, 10, np.uint8))))
    with pytest.raises(InputError, match="expected t10k labels from 0 to 9, got 10"):
        run_study(table2.STUDY, Setting((folder,), 1, True), tmp_path / "out")
    result = CliRunner().invoke(app, ["table1", str(tmp_path / "gone"), "--quick", "-o", str(tmp_path / "o")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


# ---- whole studies ----


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_quick_study_finds_tables_and_a_figure(name: str, data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, [name, str(data), "-o", str(tmp_path), "--quick", "--seeds", "1", "--jobs", "1", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / f"{name}.json").read_text())
    assert summary["quick"]
    markdown = (tmp_path / f"{name}.md").read_text()
    assert "nan" not in markdown
    assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    rows = summary["rows"]
    if name == "table1":
        assert summary["differ"] == 0
        assert summary["compared"] == 200 * len(rows)
        for row in rows:
            assert row["us"]["1"] > 0
            assert row["us"]["256"] > row["us"]["1"]
            assert row["leaf"] or row["speed_up"] == {"1": 1.0, "256": 1.0}
            assert 0 <= row["G_A"][1] <= 100
        assert {(row["arm"], row["leaf"]) for row in rows} == {
            ("ff", 0), *((arm, leaf) for arm in classify.TREES for leaf in (8, 1))
        }  # fmt: skip
        tree = next(row for row in rows if row["leaf"] == 8 and row["width"] == 16)
        assert tree["bound"] == pytest.approx(16 * 794 / (784 + 8 * 794))
    else:
        assert {(row["model"], row["width"]) for row in rows} == {
            (model, width) for model in table2.MODELS for width in (64, 256)
        }
        assert sum(summary["ended"].values()) == 2 * len(rows)
        for row in rows:
            assert row["M_A"]["epoch"][1] <= summary["recipe"]["epochs"]
            assert ("max_load" in row["M_A"]) == (row["model"] != "ff")
            assert ("soft" in row["G_A"]) == (row["model"] in classify.TREES)


def test_a_study_that_was_stopped_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.studies import study as frame

    names = few(monkeypatch, table1, 4)

    class Here:
        """A pool of one, in this process, which is killed before its third trial."""

        left = 2

        def __init__(self, *_: Any) -> None:
            self._processes: dict[int, Any] = {}

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def shutdown(self, **_: Any) -> None:
            pass

        def submit(self, run: Any, *arguments: Any) -> Any:
            from concurrent.futures import Future

            future: Any = Future()
            if Here.left:
                Here.left -= 1
                future.set_result(run(*arguments))
            else:
                future.set_exception(KeyboardInterrupt())
            return future

    monkeypatch.setattr(frame, "ProcessPoolExecutor", Here)
    setting = Setting((data,), 1, True)
    with pytest.raises(KeyboardInterrupt):
        run_study(table1.STUDY, setting, tmp_path)
    assert len(names) == 2
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) <= 2
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"name": "cut')
    Here.left = 9
    run_study(table1.STUDY, setting, tmp_path)
    finished = [json.loads(line)["name"].replace("/", "-") for line in (tmp_path / "trials.jsonl").open()]
    assert sorted(finished) == sorted(set(names))
    assert len(finished) == 4
    before = len(names)
    moved = Setting((shutil.copytree(data, tmp_path / "moved"),), 1, True)  # trials know data by its content
    run_study(table1.STUDY, moved, tmp_path)
    assert len(names) == before
    (tmp_path / "trials" / finished[0] / engine.FILE).unlink()
    with pytest.raises(
        CheckpointError, match=r"trained.safetensors: expected the weights of a finished trial"
    ) as caught:
        run_study(table1.STUDY, setting, tmp_path)
    assert "\n" not in str(caught.value)


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from bench.studies import study

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), study._begin) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc", parent.stdout.readline().strip())
        parent.kill()
    until = time.monotonic() + 20
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not worker.exists()


# ---- parts ----


def small(data: Path) -> tuple[classify.Labelled, classify.Labelled]:
    images = read_mnist([data])
    return classify.labelled(images.train, images.train_labels), classify.labelled(images.test, images.test_labels)


NETWORKS: dict[str, Any] = {
    "dense": lambda: classify.Dense(784, 16),
    "tree": lambda: classify.tree(784, 32, 4, Trees(balance=0.1)),
    "soft": lambda: classify.tree(784, 16, 8, Trees(forward="soft", balance=0.0)),
    "deep": lambda: classify.tree(784, 32, 1, Trees(forward="soft", balance=0.0)),
    "wide": lambda: classify.tree(784, 128, 64, Trees(forward="soft", balance=0.0)),
    "mixture": lambda: classify.mixture(784, 64, 16, 2, classify.MIXTURE),
}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_networks_learn_and_the_engine_finds_the_same_classes(kind: str, data: Path, tmp_path: Path) -> None:
    images, test = small(data)
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    train, held_out = classify.divided(images, 0)
    assert (len(train), len(held_out)) == (540, 60)
    recipe = classify.Recipe("adam", 3e-3, batch=32, epochs=8, patience=8, hardening=0.1)
    fitted = classify.fit(network, train, held_out, recipe, 0)
    figures, found = classify.tested(network, test)
    assert fitted.watched > 0.8
    assert figures["accuracy"] > 0.8
    assert classify.accuracy(network, held_out) == fitted.watched
    if kind == "mixture":
        return
    engine.save(tmp_path, network, found)
    kept = engine.load(tmp_path)
    classes = engine.classes_of(kept.weights, test.x.numpy())
    np.testing.assert_array_equal(classes, kept.classes)
    assert float((classes == test.y.numpy()).mean()) == figures["accuracy"]
    layer = engine.layer_of(kept.weights, 8)
    with torch.no_grad():
        np.testing.assert_allclose(layer(test.x.numpy()), network(test.x).numpy(), rtol=1e-4, atol=1e-4)


def test_training_is_the_same_for_the_same_seed_and_begins_as_linear_layers_do(data: Path) -> None:
    images, _ = small(data)
    recipe = classify.Recipe("sgd", 0.1, batch=64, epochs=2, patience=8)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = classify.mixture(784, 64, 16, 2, Mixture(noise=True, importance=0.1, load=0.1))
        assert not network.router.weight.any()
        for parameter, inputs in ((network.up, 784), (network.up_bias, 784), (network.down, 16)):
            assert 0.8 * inputs**-0.5 < float(parameter.detach().abs().max()) <= inputs**-0.5
        classify.fit(network, images, images, recipe, seed)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["up"], states[2]["up"])


def test_patience_caps_plateaus_and_losses_that_are_no_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = small(data)
    few, watched = images.take(torch.arange(64)), images.take(torch.arange(64, 128))
    still = classify.Recipe("sgd", 0.0, batch=32, epochs=9, patience=3)
    fitted = classify.fit(classify.Dense(784, 8), few, watched, still, 0)
    assert (fitted.why, fitted.epoch, fitted.epochs) == ("patience", 1, 4)
    capped = classify.fit(classify.Dense(784, 8), few, watched, classify.Recipe("sgd", 0.0, 32, 2, 3), 0)
    assert (capped.why, capped.epochs) == ("cap", 2)
    perfect = classify.fit(classify.Dense(784, 32), few, few, classify.Recipe("adam", 1e-2, 32, 60, 60), 0)
    assert (perfect.why, perfect.watched, perfect.memorised) == ("perfect", 1.0, 1.0)
    assert perfect.epoch == perfect.epochs == perfect.memorised_epoch
    rates: list[float] = []
    epoch = classify.train_epoch

    def spied(network: Any, images: Any, optimizer: Any, batch: int) -> tuple[float, float]:
        rates.append(optimizer.param_groups[0]["lr"])
        loss, _ = epoch(network, images, optimizer, batch)
        return loss, 0.5

    monkeypatch.setattr(classify, "train_epoch", spied)
    classify.fit(classify.Dense(784, 8), few, watched, classify.Recipe("adam", 1e-3, 32, 6, 9, halve_after=2), 0)
    assert rates == [1e-3] * 3 + [5e-4] * 2 + [2.5e-4]
    monkeypatch.setattr(classify, "train_epoch", lambda *_: (math.nan, 0.5))
    lost = classify.fit(classify.Dense(784, 8), few, watched, still, 0)
    assert (lost.why, lost.epoch, lost.epochs, lost.watched) == ("diverged", 0, 1, 0.0)


def test_published_figures_are_complete() -> None:
    assert set(table1.PAPER) == {(leaf, width) for leaf in (0, *table1.LEAVES) for width in table1.WIDTHS}
    assert set(table2.PAPER) == {(model, width) for model in ("ff", "moe", "soft") for width in table2.WIDTHS}
    assert classify.Recipe("adam", 1e-3, 328, epochs=700, patience=35, halve_after=25) == table2.RECIPE
