"""Studies of mixtures and trees: their quick settings on made-up data, what goes into them, and bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_runs

from lapinfer.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from bench.studies import STUDIES, clustered, collapse, data, results, routed_text, table3, vit  # noqa: E402
from bench.studies.study import Setting, find_study, run_study  # noqa: E402
from bench.studies.vit import NEURONS, ViT, tree  # noqa: E402
from lapinfer.train.fff import soft_forward, trees_of  # noqa: E402
from lapinfer.train.routed import balances_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(training_runs.text())
    return path


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def digits(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is the row of a bright bar: easy to learn."""
    labels = rng.integers(0, 10, count)
    x = rng.integers(0, 60, (count, 28, 28))
    x[np.arange(count)[:, None], 2 * labels[:, None] + np.arange(4)] = 250
    return x.astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for kind, count in (("train", 400), ("t10k", 120)):
        x, labels = digits(count, rng)
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def ran(name: str, data: Path, out: Path, **setting: Any) -> dict[str, Any]:
    """A quick study's summary, whose files must be there."""
    summary = run_study(find_study(name), Setting((data,), quick=True, **setting), out, jobs=2)
    written = json.loads((out / f"{name}.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert "<svg" in (out / f"{name}.svg").read_text()
    shown = (out / f"{name}.md").read_text()
    assert shown.startswith("# ")
    assert "nan" not in shown
    return written


def test_collapse_runs_and_goes_on_with_what_is_left(text: Path, tmp_path: Path) -> None:
    summary = ran("collapse", text, tmp_path, seeds=1)
    rows = {(row["task"], row["cell"]): row for row in summary["rows"]}
    assert len(rows) == 12
    for row in rows.values():
        assert row["trials"] == 1
        assert 0 <= row["collapsed"] <= 1
        assert all(1 <= load <= 16 for load in row["max_load"])
        assert all(1 <= used <= 16 for used in row["effective"])
        assert len(row["max_load_by_step"][0]) == len(row["steps"]) > 1
    assert rows["text", "both"]["experts"] == 32
    shown = (tmp_path / "collapse.md").read_text()
    assert "99.46 ± 0.55 %" in shown
    assert "more than half" in shown
    log = tmp_path / "trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    ran("collapse", text, tmp_path, seeds=1)
    assert log.read_text().splitlines(keepends=True) == lines  # the trial that was lost found the same again


def test_table3_runs_and_the_engine_agrees(mnist: Path, tmp_path: Path) -> None:
    summary = ran("table3", mnist, tmp_path)
    assert summary["data"] == "MNIST"
    assert summary["seeds"] == 1
    assert [row["leaf"] for row in summary["rows"]] == [0, 32, 32, 1, 1]
    for row in summary["rows"]:
        assert row["engine"]["difference"] < table3.AGREEMENT
        assert row["engine"]["same_accuracy"]
        assert row["speed_up"][1] > 0
    assert summary["rows"][0]["speed_up"] == [1, 1, 1]
    shown = (tmp_path / "table3.md").read_text()
    for figure in ("a proxy", "| 83.6 |", "| 2.44 |", "| 3.93 |"):
        assert figure in shown
    (weights,) = tmp_path.glob("trials/dense-seed-0/trained.safetensors")
    weights.write_bytes(b"")
    with pytest.raises(Exception, match=r"dense-seed-0.*delete trials.jsonl"):
        ran("table3", mnist, tmp_path)


def test_step_time_runs(text: Path, tmp_path: Path) -> None:
    summary = ran("step_time", text, tmp_path)
    assert {row["precision"] for row in summary["rows"]} == {"bf16", "f32"}
    assert 1 in {row["threads"] for row in summary["rows"]}
    for row in summary["rows"]:
        assert set(row["seconds"]) == {"dense", "moe", "fff", "active"}
        for low, mid, high in row["seconds"].values():
            assert 0 < low <= mid <= high
        assert row["of_dense"]["dense"] == [1, 1, 1]


def test_samples_of_the_clustered_task() -> None:
    rng = np.random.default_rng(3)
    features, centres = clustered.directions(rng)
    both = np.concatenate([features, centres])
    np.testing.assert_allclose(both @ both.T, np.eye(8), atol=1e-12)
    samples = clustered.draw(rng, features, centres, 4000)
    x = samples.x.numpy() / clustered.SCALE
    assert x.shape == (4000, 4, 50)
    label, cluster, rows = samples.label.numpy(), samples.cluster.numpy(), np.arange(4000)
    along = np.einsum("npd,kd->npk", x, both)  # what each patch has of each direction
    best = np.abs(along).max(axis=1)
    strongest = along[rows, np.abs(along[rows, :, cluster]).argmax(axis=1), cluster]  # of the cluster's own feature
    signs = np.where(label == 1, 1, -1)
    pure = (np.abs(along) > 0.49).sum(axis=(1, 2))
    assert (np.sign(strongest) == signs).mean() > 0.999
    assert ((best[rows, cluster] > 0.49) & (best[rows, cluster] < 2.01)).mean() > 0.999  # α
    assert ((best[rows, 4 + cluster] > 0.99) & (best[rows, 4 + cluster] < 2.01)).mean() > 0.999  # β
    assert (pure >= 3).all()  # feature, centre, and another cluster's feature
    others = np.delete(np.arange(4)[None].repeat(4000, 0), rows * 4 + cluster).reshape(4000, 3)
    decoy = np.take_along_axis(best[:, :4], others, axis=1).max(axis=1)
    assert ((decoy > 0.49) & (decoy < 3.01)).mean() > 0.999  # γ
    lengths = np.sort(np.linalg.norm(x, axis=2).ravel())
    assert lengths[0] > 0.3
    where = np.abs(along[rows, :, 4 + cluster]).argmax(axis=1)  # the place of the centre
    assert np.bincount(where, minlength=4).min() > 900
    assert np.bincount(cluster, minlength=4).min() > 900
    assert 1800 < label.sum() < 2200


def test_the_clustered_mixture_learns() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    found = clustered.directions(rng)
    train, test = (clustered.draw(rng, *found, 2000) for _ in range(2))
    model = clustered.ClusteredMoE(nonlinear=True, noise=True)
    assert not model.router.any()
    losses = [clustered.step(model, train, {"importance": 0.01, "switch": 0.01})[0] for _ in range(150)]
    assert losses[-1] < 0.8 * losses[0]
    figures = clustered.judge(model, test)
    assert figures["accuracy"] > 0.8
    assert np.array(figures["by_cluster"]).sum() == 2000


def test_experts_without_samples_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    samples = clustered.draw(rng, *clustered.directions(rng), 50)
    model = clustered.ClusteredMoE(nonlinear=False, noise=False)
    with torch.no_grad():
        model.router.zero_()  # then the first expert has all
    before = model.filters.detach().clone()
    _, load = clustered.step(model, samples, {})
    assert load.tolist() == [50] + [0] * 7
    assert torch.equal(model.filters[1:], before[1:])
    moved = (model.filters[0] - before[0]).norm().item()
    assert 0.9 * clustered.EXPERT_RATE < moved <= 1.001 * clustered.EXPERT_RATE


def test_loads() -> None:
    even = results.described_load(torch.tensor([5.0, 5.0, 5.0, 5.0]), 1, 0.0)
    assert (even["max_load"], even["share"], even["dead"]) == (1, 0.25, 0)
    assert even["effective"] == pytest.approx(4)
    one = results.described_load(torch.tensor([0.0, 8.0, 8.0, 0.0]), 2, 0.0)
    assert (one["max_load"], one["share"], one["dead"]) == (2, 1, 2)
    assert one["effective"] == pytest.approx(2)


def test_cells_of_the_language_model() -> None:
    found = {}
    for cell, (noise, penalty) in collapse.CELLS.items():
        moe = routed_text.config(noise, penalty, seed=0, quick=True).moe
        assert moe is not None
        assert moe.z_loss == 0
        found[cell] = (moe.noise, moe.importance, moe.load, moe.switch)
    assert found == {
        "neither": (False, 0, 0, 0), "noise": (True, 0, 0, 0), "penalty": (False, 0.1, 0, 0.01),
        "both": (True, 0.1, 0.1, 0),
    }  # fmt: skip


@pytest.mark.parametrize("leaf", [0, 128, 32, 1])
def test_a_transformer_in_the_engine(leaf: int) -> None:
    torch.manual_seed(1)
    model = ViT(3, 16, leaf)
    x = torch.randn(6, 3, 16, 16)
    found = vit.predictions(model, x)
    with vit.engine_forwards(model) as checks:
        assert torch.equal(vit.predictions(model, x), found)
    assert [check.tokens for check in checks] == [6 * 17] * 4
    assert max(check.difference for check in checks) < table3.AGREEMENT
    inputs = vit.activations(model, x, 50)
    assert [i.shape for i in inputs] == [(50, 128)] * 4
    assert not model.feed_forwards[0]._forward_hooks


def test_a_frozen_tree_stays_as_it_began(mnist: Path) -> None:
    split = vit.split(data.read_images([mnist]), 64, 16, 16)
    torch.manual_seed(5)
    begun = ViT(1, 28, 32, "hardened")
    fitted = vit.fit(split, 32, "frozen", epochs=1, seed=5)
    for before, after in zip(trees_of(begun), trees_of(fitted.model), strict=True):
        assert before.nodes is not None
        assert after.nodes is not None
        assert torch.equal(before.nodes.weight, after.nodes.weight)
        assert not torch.equal(before.up, after.up)


def test_hardening_lowers_the_entropy(mnist: Path) -> None:
    split = vit.split(data.read_images([mnist]), 300, 40, 40)
    entropy = {}
    for recipe in ("dense", "10"):
        fitted = vit.fit(split, 32, recipe, epochs=2, seed=0)
        balances = balances_of(fitted.model)
        hard = vit.predictions(fitted.model, split.test.x, balances)
        entropy[recipe] = balances[0].as_dict()["entropy"]
        with soft_forward(fitted.model):
            assert len(vit.predictions(fitted.model, split.test.x)) == len(hard)
    assert entropy["10"] < 0.9 * entropy["dense"]


def test_trees_have_the_papers_sizes() -> None:
    for leaf, depth in ((32, 2), (16, 3), (8, 4), (4, 5), (2, 6), (1, 7)):
        made = tree(leaf)
        assert made.tree.depth == depth
        assert made.up.shape == (1 << depth, leaf, 128)
        assert made.up.shape[0] * leaf == NEURONS


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_cifar_is_found(inner: str, tmp_path: Path) -> None:
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    parts = []
    for name in data.CIFAR_BATCHES:
        x, labels = rng.integers(0, 256, (7, 3072), dtype=np.uint8), rng.integers(0, 10, 7)
        parts.append((x, labels))
        if inner.endswith("bin"):
            (folder / f"{name}.bin").write_bytes(np.column_stack([labels.astype(np.uint8), x]).tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": x, b"labels": labels.tolist()}, protocol=2))
    found = data.read_images([tmp_path])
    assert found.name == "CIFAR-10"
    assert found.train.shape == (35, 3, 32, 32)
    np.testing.assert_array_equal(found.train[7:14].reshape(7, -1), parts[1][0])
    np.testing.assert_array_equal(found.test_labels, parts[5][1])


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_bad_images(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as error:
            data.read_images([folder])
        assert "\n" not in str(error.value)

    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "train-images.*no such file")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [1]}))
    refused(tmp_path, "data_batch_1: not a batch.*print")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}))
    refused(tmp_path, "labels from 0 to 9")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}))
    refused(tmp_path, "data_batch_2: no such file")
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "data_batch_1.bin").write_bytes(bytes(3072))
    refused(binary, "not whole images")
    with pytest.raises(InputError, match=r"400 images to train on; the study needs 1,?001"):
        vit.split(data.read_images([mnist]), 1000, 1, 1)


@pytest.mark.parametrize("name", ["collapse", "table3", "step_time"])
def test_bad_input_of_studies(name: str, tmp_path: Path) -> None:
    assert name in STUDIES
    study, short = find_study(name), tmp_path / "short.txt"
    short.write_text("too little\n")

    def refused(*paths: Path) -> None:
        with pytest.raises(InputError) as error:
            run_study(study, Setting(paths, quick=True), tmp_path / "out", jobs=1)
        assert "\n" not in str(error.value)

    refused()
    refused(tmp_path / "missing")
    refused(short)
    if name == "table3":
        refused(tmp_path, tmp_path)
    assert not (tmp_path / "out" / "trials.jsonl").exists()


def test_turns() -> None:
    seen: list[str] = []

    def clock(name: str) -> Any:
        return lambda: float(seen.append(name) or len(seen))

    found = results.interleaved({"a": clock("a"), "b": clock("b")}, rounds=2, warm_up=1)
    assert "".join(seen) == "ababab"
    assert found == {"a": [3, 5], "b": [4, 6]}
    assert results.quartiles([1, 2, 3, 4, 5]) == [2, 3, 4]
