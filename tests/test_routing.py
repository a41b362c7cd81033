"""Routing: counts against a plain loop, expected distinct experts against simulation, reports, the command line."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import combinations
from pathlib import Path

import fake_model
import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder, install
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.report import experts as report
from lapinfer.runtime.chance import expected_distinct, expected_distinct_by_load
from lapinfer.runtime.routing import BINS, Routing
from lapinfer.spec import RouterSpec
from lapinfer.text.language_model import from_model

ROOT = Path(__file__).parent.parent


def routed_spec(*routers):
    return fake_model.spec(routers=tuple(r and RouterSpec(*r) for r in routers))


# Counts


@st.composite
def recordings(draw):
    """(spec, steps): layers of different sizes, a dense one between them, slots that take turns and start anew."""
    sizes = draw(st.lists(st.integers(1, 9).flatmap(lambda E: st.tuples(st.just(E), st.integers(1, min(E, 4))))))
    sizes = sizes or [(4, 2)]
    spec = routed_spec(sizes[0], None, *sizes[1:])
    most = max(k for _, k in sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    position = dict.fromkeys(range(draw(st.integers(1, 4))), 0)
    steps = []
    for T in draw(st.lists(st.one_of(st.integers(1, 9), st.sampled_from([1, 63, 70])), min_size=1, max_size=12)):
        slot = np.sort(rng.integers(0, len(position), T))
        pos = np.zeros(T, np.int64)
        for t, s in enumerate(slot.tolist()):
            position[s] = 0 if rng.random() < 0.1 else position[s] + 1
            pos[t] = position[s]
        chosen = np.full((len(sizes), T, most), -1, np.int64)
        for i, (E, k) in enumerate(sizes):
            for t in range(T):
                chosen[i, t, :k] = rng.permutation(E)[:k]
        weight = np.where(chosen < 0, 0, rng.random(chosen.shape)).astype(np.float32)
        steps.append((slot.astype(np.int64), pos, chosen, weight))
    return spec, steps


def counted_plainly(shape, steps):
    """The arrays of a Routing, one use of an expert after another."""
    L, E = shape
    counts = {name: np.zeros(shape) for name in ("tokens_routed", "weight_mass")}
    counts |= {name: np.zeros((L, BINS)) for name in ("reuse", "distinct")}
    counts |= {name: np.zeros(L) for name in ("first_use", "followed", "repeated")}
    counts |= {name: np.zeros(BINS) for name in ("steps", "step_tokens")}
    counts |= {"together": np.zeros((L, E, E)), "tokens": np.array(0)}
    tokens, used, last = Counter(), {}, {}
    for slot, pos, chosen, weight in steps:
        size = len(slot).bit_length() - 1
        counts["steps"][size] += 1
        counts["step_tokens"][size] += len(slot)
        for i in range(L):
            counts["distinct"][i, size] += len(set(chosen[i].reshape(-1).tolist()) - {-1})
        for t, (s, p) in enumerate(zip(slot.tolist(), pos.tolist(), strict=True)):
            counts["tokens"] += 1
            tokens[s] += 1
            for i in range(L):
                got = [e for e in chosen[i, t].tolist() if e >= 0]
                before = last[s][1][i] if s in last and last[s][0] == p - 1 else None
                for e, w in zip(got, weight[i, t].tolist(), strict=False):
                    counts["tokens_routed"][i, e] += 1
                    counts["weight_mass"][i, e] += w
                    if (s, i, e) in used:
                        counts["reuse"][i, (tokens[s] - used[s, i, e]).bit_length() - 1] += 1
                    else:
                        counts["first_use"][i] += 1
                    used[s, i, e] = tokens[s]
                    if before is not None:
                        counts["followed"][i] += 1
                        counts["repeated"][i] += e in before
                for e, f in combinations(got, 2):
                    counts["together"][i, [e, f], [f, e]] += 1
            last[s] = p, [set(chosen[i, t].tolist()) for i in range(L)]
    return counts


@settings(max_examples=60, deadline=None)
@given(recordings(), st.integers(0, 12))
def test_counts_are_those_of_a_plain_loop(recording, read_after):
    spec, steps = recording
    routing = Routing(spec)
    for i, step in enumerate(steps):
        if i == read_after:
            routing.arrays()
        routing.record(*step)
    assert routing.tokens == sum(len(slot) for slot, *_ in steps)
    found = routing.arrays()
    assert routing.tokens == found["tokens"]
    for name, expected in counted_plainly(found["tokens_routed"].shape, steps).items():
        if name == "weight_mass":
            np.testing.assert_allclose(found[name], expected, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], expected, name)
    assert found["layers"].tolist() == [0, *range(2, len(spec.layers))]


def test_the_buffers_of_a_step_may_be_overwritten():
    routing = Routing(routed_spec((4, 2)))
    chosen, slot = np.array([[[1, 3]]]), np.zeros(1, np.int64)
    routing.record(slot, slot, chosen, np.ones((1, 1, 2), np.float32))
    chosen[:] = 0
    assert routing.arrays()["tokens_routed"].tolist() == [[0, 1, 0, 1]]


def test_derived_figures():
    routing = Routing(routed_spec((4, 1), (8, 2)))
    chosen = np.array([[[0, -1], [0, -1], [1, -1], [1, -1]], [[0, 1], [0, 2], [0, 3], [0, 4]]])
    routing.record(np.zeros(4, np.int64), np.arange(4), chosen, np.ones(chosen.shape, np.float32))
    a = routing.arrays()
    share = np.array([4, 1, 1, 1, 1]) / 8
    bits = [1.0, -(share * np.log2(share)).sum()]
    assert a["entropy"] == pytest.approx(bits)
    assert a["entropy_share"] == pytest.approx([bits[0] / 2, bits[1] / 3])
    assert a["max_over_mean"].tolist() == [2, 4]
    assert a["unused"].tolist() == [2, 3]
    assert a["repeat_share"].tolist() == [2 / 3, 0.5]
    assert a["repeat_chance"] == pytest.approx([0.5, 2 * (share**2).sum()])
    assert a["distinct_per_step"].tolist() == [2, 5]
    summary = routing.summary()
    assert [layer["reuse_median"] for layer in summary["layers"]] == [1, 1]
    assert summary["step_sizes"][0]["tokens"] == 4
    assert summary["step_sizes"][0]["distinct"] == 3.5


def test_nothing_recorded_is_no_error():
    routing = Routing(routed_spec((4, 2), (1, 1)))
    assert all(np.isfinite(value).all() for value in routing.arrays().values())
    assert routing.summary()["tokens"] == 0
    assert "0 tokens" in report.text_table(routing)
    assert b"</html>" in report.to_html(routing)


# Expected distinct experts


@pytest.mark.parametrize(("E", "k", "B"), [(8, 2, 1), (8, 2, 5), (64, 6, 20), (16, 16, 3)])
def test_expected_distinct_is_what_chance_brings(E, k, B):
    rng = np.random.default_rng(0)
    picks = np.argsort(rng.random((4000, B, E)), axis=2)[:, :, :k].reshape(4000, -1)
    mean = np.mean([len(set(row)) for row in picks.tolist()])
    assert expected_distinct(E, k, B) == pytest.approx(mean, rel=0.02)
    assert expected_distinct_by_load(np.full(E, 7), k, B) == pytest.approx(float(expected_distinct(E, k, B)))


def test_expected_distinct_by_load_is_what_chance_brings():
    rng = np.random.default_rng(0)
    weights = np.log(rng.random(16) ** 3)
    picks = np.argsort(rng.gumbel(size=(40000, 16)) + weights, axis=1)[:, -3:]
    load = np.bincount(picks.reshape(-1), minlength=16)
    batch = np.array([1, 4, 16])
    found = expected_distinct_by_load(load, 3, batch)
    for B, expected in zip(batch.tolist(), found.tolist(), strict=True):
        groups = picks[: len(picks) // B * B].reshape(-1, B * 3)
        assert expected == pytest.approx(np.mean([len(set(row)) for row in groups.tolist()]), rel=0.02)
    assert (found <= expected_distinct(16, 3, batch) + 1e-9).all()


# Reports


@pytest.fixture
def routing():
    recorded = Routing(routed_spec((12, 3), None, (6, 2)))
    rng = np.random.default_rng(1)
    for T in (30, 1, 1, 1):
        chosen = np.full((2, T, 3), -1)
        chosen[0] = np.argsort(rng.random((T, 11)), axis=1)[:, :3]
        chosen[1, :, :2] = np.argsort(rng.random((T, 6)), axis=1)[:, :2]
        recorded.record(np.zeros(T, np.int64), np.arange(T), chosen, np.where(chosen < 0, 0, 0.5).astype(np.float32))
    return recorded


def test_json_and_npz_hold_the_arrays(routing, tmp_path):
    report.write(tmp_path / "r.json", routing, "org/name")
    report.write(tmp_path / "r.npz", routing, "org/name")
    value = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (value["model"], value["summary"]) == ("org/name", routing.summary())
    with np.load(tmp_path / "r.npz", allow_pickle=False) as stored:
        assert stored["model"] == "org/name"
        for name, array in routing.arrays().items():
            np.testing.assert_array_equal(stored[name], array)
            np.testing.assert_array_equal(value["arrays"][name], array)
            assert stored[name].dtype == array.dtype
    assert sorted(os.listdir(tmp_path)) == ["r.json", "r.npz"]


def test_the_page_is_whole_and_alone(routing, tmp_path):
    report.write(tmp_path / "r.html", routing, "a <b> & c")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not [word for word in ("http:", "https:", "url(", "@import", "src=", 'href="/') if word in text]
    assert "prefers-color-scheme: dark" in text
    root = ET.fromstring(text)
    assert root.findtext(".//h1") == "Experts of a <b> & c"
    rows = root.findall(".//table[@class='map']/tbody/tr")
    assert [row.findtext("th") for row in rows] == ["0", "2"]
    cells = [row.findall("td") for row in rows]
    counts = routing.arrays()["tokens_routed"]
    assert [[int(cell.text or "") for cell in row] for row in cells] == [counts[0].tolist(), counts[1, :6].tolist()]
    assert cells[0][11].get("class") == "none"
    assert [float(row.get("data-mean", "")) for row in rows] == pytest.approx(
        [counts[0].mean(), counts[1].sum() / 6], 1e-3
    )
    assert len(root.findall(".//circle[title]")) == 2  # steps of 1 and of 30 tokens


def test_paths_are_checked_and_files_replaced_whole(routing, tmp_path, monkeypatch):
    for path in (tmp_path / "r.txt", tmp_path / "none" / "r.json", tmp_path / "r"):
        with pytest.raises(InputError):
            report.check_path(path)
    (tmp_path / "d.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        report.check_path(tmp_path / "d.json")
    path = tmp_path / "r.JSON"
    path.write_text("old")
    with pytest.raises(InputError, match=r"r\.JSON is there already: .* not written by lapinfer; .*--force"):
        report.write(path, routing)
    assert report.check_path(path, force=True) == f"{path}, a file of 3 bytes"
    assert path.read_text() == "old"

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(InputError, match=r"r\.JSON: cannot be written: No space"):
            report.write(path, routing, force=True)
    assert (path.read_text(), sorted(os.listdir(tmp_path))) == ("old", ["d.json", "r.JSON"])
    report.write(path, routing, force=True)
    report.write(path, routing)  # over a report
    assert json.loads(path.read_text(encoding="utf-8"))["summary"]["tokens"] == 33


# Through a model


@pytest.fixture
def folder(tmp_path):
    return byte_tokenizer_folder(tmp_path / "model")


@pytest.fixture
def fake(folder, monkeypatch):
    model = FakeModel(folder, ctx=4096, script=[*b"ok", 257], experts=8)
    model.asked = install(monkeypatch, lambda: model)
    return model


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_block_watches_and_blocks_nest(folder):
    with from_model(FakeModel(folder, experts=8)) as model:  # pyright: ignore
        model.generate("unseen", max_tokens=1)
        with model.watch_experts() as outer:
            model.forward([1, 2, 3])
            with model.watch_experts() as inner:
                model.forward([4])
            model.forward([5])
        model.forward([6])
    assert (outer.tokens, inner.tokens) == (4, 1)
    assert model.model.routing is None
    assert outer.layers.tolist() == [1, 2]


def test_a_dense_model_has_nothing_to_watch(folder, tmp_path, monkeypatch):
    install(monkeypatch, lambda: FakeModel(folder, ctx=4096))
    text = tmp_path / "text.txt"
    text.write_text("words")
    for arguments in (("experts", "x", text), ("run", "-m", "x", "--experts-report", tmp_path / "r.json", "hi")):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "error: this model has no routed layers: there are no experts to watch\n"


def test_run_writes_what_it_used(fake, tmp_path):
    result = invoke("run", "-m", "x", "--raw", "--experts", 2, "--experts-report", tmp_path / "r.json", "abc")
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    assert fake.asked[-1][1]["experts"] == 2
    value = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert value["summary"]["tokens"] == len("abcok")
    expected = [0] * 8
    for byte in b"abcok":
        expected[byte % 8] += 1
        expected[(byte + 1) % 8] += 1
    assert value["arrays"]["tokens_routed"][0] == expected


def test_bad_paths_are_refused_before_loading(fake, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words")
    for option in (("run", "-m", "x", "hi", "--experts-report"), ("experts", "x", text, "-o")):
        for path, message in (
            (tmp_path / "r.xml", "expected a name"),
            (tmp_path / "no" / "r.npz", "cannot be written"),
        ):
            result = invoke(*option, path)
            assert result.exit_code == 1
            assert message in result.stderr
            assert result.stderr.count("\n") == 1
    assert fake.asked == []


def test_experts_reads_texts_in_chunks(fake, tmp_path):
    for name, size in (("a.txt", 70), ("b.txt", 20)):
        (tmp_path / name).write_text("x" * size)
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    result = invoke("experts", "x", *files, "-c", 32, "-o", tmp_path / "r.npz")
    assert result.exit_code == 0, result.stderr
    assert "90 tokens in 7 steps" in result.stdout  # the fake takes 16 tokens per step
    assert "steps of 16 tokens: 1.5 different experts per layer" in result.stdout
    with np.load(tmp_path / "r.npz") as stored:
        assert stored["tokens"] == 90
        assert stored["followed"].tolist() == [2 * (90 - 4), 90 - 4]  # four fresh sequences
    value = json.loads(invoke("experts", "x", *files, "-c", 32, "--chunks", 1, "--json", "--experts", 1).stdout)
    assert value["tokens"] == 32 + 20
    assert fake.asked[-1][1]["experts"] == 1
    (tmp_path / "a.txt").write_text("")
    assert "the text is empty" in invoke("experts", "x", tmp_path / "a.txt").stderr


def test_experts_pass_to_the_loader(fake):
    for arguments in (("explain", "x"), ("bench", "-m", "x", "-p", 4, "-n", 0, "-r", 1)):
        assert invoke(*arguments, "--experts", 3).exit_code == 0
        assert fake.asked[-1][1]["experts"] == 3
        assert invoke(*arguments, "--experts", 0).exit_code == 2


def test_perplexity_tells_what_fewer_experts_cost(folder, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 4)

    def make():  # first the one with fewer experts, then its reference
        model = FakeModel(folder, ctx=64, experts=8, top_k=1 if len(asked) == 1 else 2)
        if len(asked) == 1:
            plain = model._logits
            model._logits = lambda ids, pos: 1.5 * plain(ids, pos)
        return model

    asked = install(monkeypatch, make)
    lines = invoke("perplexity", "x", text, "-c", 32, "--experts", 1).stdout.splitlines()
    assert [options["experts"] for _, options in asked] == [1, None]
    assert lines[0] == "1 experts per token; the reference is the model with its own 2"
    asked.clear()
    value = json.loads(invoke("perplexity", "x", text, "-c", 32, "--experts", 1, "--json").stdout)
    assert (value["experts"], value["reference_experts"]) == (1, 2)
    assert value["difference"] == value["ppl"] - value["reference_ppl"] != 0
    assert 0 < value["difference_error"] < value["error"]
    assert lines[1].startswith(f"PPL = {value['ppl']:.4f}")
    assert lines[2].startswith(f"reference PPL = {value['reference_ppl']:.4f}, difference {value['difference']:+.4f} ±")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_still_writes_the_report(folder, tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_model as f; folder = f.Path(sys.argv.pop(1));"
        "f.install(None, lambda: f.FakeModel(folder, ctx=4096, delay=0.02, script=[97], experts=8));"
        "from lapinfer.cli import main; main()"
    )
    line = [sys.executable, "-c", script, str(ROOT / "tests"), str(folder), "run", "-m", "x", "--raw", "hello"]
    process = subprocess.Popen(
        [*line, "--experts-report", str(tmp_path / "r.json")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}, stdout=-1, stderr=-1, stdin=-3,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["summary"]["tokens"] > 4
