"""`lapinfer report`: measured on tiny models, drawn as a page, and the formula of its sliders against predictions."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_fff_models as trees
import tiny
from fake_model import byte_tokenizer_folder
from safetensors.numpy import load_file, save_file
from test_best import WithCoarseHead
from test_best import decoder as coarse_decoder
from typer.testing import CliRunner

from lapinfer.checkpoint import shipped
from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.families import spec_from_config
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.report import collect, drawing, measure, roofline, texts, whatif
from lapinfer.report.measured import Machine, Report, to_json
from lapinfer.report.page import page
from lapinfer.report.page_whatif import SCRIPT
from lapinfer.report.random_weights import shape_formats
from lapinfer.report.roofline import Roofline
from lapinfer.report.shapes import shape_spec
from lapinfer.report.sizes import SIZES, Size
from lapinfer.report.whatif import Settings, stored, terms, touched
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import packed_bytes, predict_bytes
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors
from lapinfer.text.language_model import LanguageModel

ROOF = Roofline(1, {1: 2e10}, {"int8": 1e11, "float32": 3e10})
SIZE = Size(64, 2, 4, 2, 256, 4, 2, 1, vocab=160, context=64)
KINDS = ["dense", "moe", "fff"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A machine that need not be measured, few steps, and packed copies that are left behind nowhere."""
    monkeypatch.setattr(roofline, "measure", lambda threads: ROOF)
    monkeypatch.setattr(roofline, "bandwidth_now", lambda threads: 2e10)
    monkeypatch.setattr(measure, "DECODED", 2)
    monkeypatch.setattr(measure, "BATCHED", 3)
    monkeypatch.setitem(SIZES, "100m", SIZE)
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model, one with experts and one with trees, with a token a byte."""
    base = tmp_path_factory.mktemp("models")
    found: dict[str, Path] = {}
    for kind, case in (("dense", "llama-plain"), ("moe", "mixtral-plain")):
        config, weights, _, _ = tiny.read_golden(tiny.GOLDEN / f"{case}.npz")
        found[kind] = _with_bytes(base / kind, config, weights)
    weights = trees.write(base / "trees", {"depth": 3, "leaf_width": 8})
    config = json.loads((weights / "config.json").read_text())
    found["fff"] = _with_bytes(base / "fff", config, load_file(weights / "model.safetensors"))
    return found


def _with_bytes(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    """A checkpoint whose embedding is repeated until there is a row for each byte."""
    byte_tokenizer_folder(folder, chat=None)
    vocab = config["vocab_size"]
    weights = {n: np.resize(w, (258, w.shape[1])) if w.shape[0] == vocab else w for n, w in weights.items()}
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 258}))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def text() -> str:
    return "It is a truth universally acknowledged, that a page says what was measured. " * 3


@pytest.fixture
def report(folders: dict[str, Path], text: str) -> Report:
    return deepcopy(_report(tuple(str(folders[kind]) for kind in KINDS), text))


@cache
def _report(names: tuple[str, ...], text: str) -> Report:
    options = collect.Options(LoadOptions(threads=1), context=32, text=text, source="a text")
    return collect.collect(names, options=options)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, ("report", *arguments))))


# What is measured


def test_models_are_measured(report: Report) -> None:
    assert [m.name for m in report.models] == [m.kind for m in report.models] == KINDS
    assert not report.failures
    assert all(m.paired for m in report.models)
    for m in report.models:
        assert len(m.decode.turns) == len(m.prompt.turns) == measure.TURNS
        assert sum(m.decode.predicted.values()) == m.decode.bytes
        assert sum(m.prompt.predicted.values()) == m.prompt.bytes
        assert m.decode.position == 31
        assert m.prompt.tokens == m.context == 32
        assert m.active <= m.parameters
        assert m.ppl is not None
        assert m.ppl[0] > 1
        assert m.text == "real"
        assert [b.tokens for b in m.batches] == [1, 2, 4, 8, 16]
        sizes = [b.bytes for b in m.batches]
        assert sizes == sorted(sizes, reverse=True)
        assert dict(map(tuple, m.contexts))[64] > m.decode.bytes  # pyright: ignore
        assert (m.routed is None) == (m.kind == "dense")
        assert touched(m.terms, Settings(m.context)) == m.decode.predicted
    moe = report.models[1]
    assert moe.routed is not None
    assert np.sum(moe.routed.load) == 2 * 2 * moe.routed.summary["tokens"]
    assert moe.batches[0].distinct == moe.routed.prompts[0][1] == 2


def test_a_head_in_two_passes_is_measured_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURNS", 1)
    spec = coarse_decoder(vocab=10_000)
    model = Model(spec, WithCoarseHead(spec), Limits(64, 1, 24, threads=1, activations="q16"))
    with LanguageModel(model) as loaded:
        *_, m = measure.measure_model(loaded, "coarse", "a text", 24, lambda *args: None, random=True)
    for step in (m.decode, m.prompt):
        assert sum(step.predicted.values()) == step.bytes
    whole = sum(touched(terms(spec, model.weights.formats, "f16"), Settings(24)).values())  # type: ignore[attr-defined]
    of_sliders = sum(touched(m.terms, Settings(24)).values())
    block = model.weights.tensor("head").shape[1]
    assert m.decode.bytes < whole
    assert abs(of_sliders - m.decode.bytes) <= block / 2  # as many row blocks as a step reads, rounded


def test_json_holds_all_that_was_measured(report: Report) -> None:
    value = json.loads(to_json(report))
    assert set(value) == {"lapinfer", "machine", "text", "created", "models", "failures", "interrupted"}
    for content, m in zip(value["models"], report.models, strict=True):
        assert content == json.loads(json.dumps(asdict(m)))
        assert content["decode"]["bytes"] == m.decode.bytes
        assert (content["routed"] is None) == (m.routed is None)


def test_random_shapes_have_no_perplexity() -> None:
    found = collect.collect([], ["100m"], collect.Options(LoadOptions(threads=1), context=16))
    assert [m.name for m in found.models] == ["100m-dense", "100m-dense-active", "100m-moe", "100m-fff"]
    assert {(m.ppl, m.unscored, m.text) for m in found.models} == {(None, "random weights", "random")}
    assert "real costs and no quality" in page(found)


def test_ctrl_c_leaves_what_there_is(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(loaded: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "moe":
            raise KeyboardInterrupt
        return measure.measure_model(loaded, name, *arguments, **options)

    monkeypatch.setattr(collect, "measure_model", stop)
    result = invoke(folders["dense"], folders["moe"], folders["fff"], "-o", tmp_path / "r.html", "-c", 16, "-t", 1)
    assert result.exit_code == 130
    assert "Stopped by Ctrl-C" in (tmp_path / "r.html").read_text(encoding="utf-8")


# The page


def test_the_page_stands_alone(report: Report) -> None:
    report.failures.append(("a<b", "a<b: no & such"))
    html = page(report)
    root = ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))
    tags = {element.tag for element in root.iter()}
    assert not tags & {"link", "img", "iframe", "object", "image"}
    assert not [e for e in root.iter() if "src" in e.attrib]
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert {e.attrib["href"] for e in root.iter() if "href" in e.attrib} <= {f"#{id}" for id in ids}
    assert not re.search(r"https?:|url\(|@import|fetch\(", html)
    headings = [e.text for e in root.iter("h2")]
    assert headings == [
        "What was found", "Where a token's bytes go", "All figures", "What if", "Memory, speed, quality", "Roofline",
        "Routing of B moe", "Different experts in a step: B moe",
        "Routing of C fff", "Different leaves in a step: C fff",
        "Batches", "Context", "Words", "How it was measured",
    ]  # fmt: skip
    assert "a&lt;b: no &amp; such" in html
    assert "nan" not in html
    assert len(list(root.iter("svg"))) > 9
    assert len(ids) == len(set(ids))
    assert {e.attrib["for"] for e in root.iter("label")} <= set(ids)


def test_a_page_of_one_dense_model(report: Report) -> None:
    html = page(replace(report, models=report.models[:1]))
    ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))
    assert "Routing" not in html


def test_many_experts_share_cells(monkeypatch: pytest.MonkeyPatch, report: Report, folders: dict[str, Path]) -> None:
    monkeypatch.setattr(measure, "MOST_CELLS", 3)
    found = collect.collect([str(folders["fff"])], options=collect.Options(LoadOptions(threads=1), context=32))
    routed = found.models[0].routed
    assert routed is not None
    assert (routed.merged, len(routed.load[0])) == (3, 3)
    assert "A cell is 3 neighbouring leaves." in page(found)


@pytest.mark.parametrize("log", [True, False])
def test_scales_have_a_handful_of_round_ticks(log: bool) -> None:
    for high in (1.3, 7, 40, 999, 1e4, 3e7, 2e12):
        axis = drawing.Axis("", 1 if log else 0, high, log)
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= 8
        assert all(0 <= axis.place(tick) <= 1.001 for tick in ticks)


def test_numbers_are_short() -> None:
    assert [drawing.short(v) for v in (0, 0.5, 999.6, 1234, 27_440_000)] == ["0", "0.5", "1 k", "1.23 k", "27.4 M"]
    assert [drawing.megabytes(v) for v in (4e3, 1.1e6, 23.75e6, 1.5e9)] == ["0.00", "1.10", "23.8", "1,500"]


# What if


def specs() -> dict[str, ModelSpec]:
    found = {}
    for case in tiny.CASES:
        found[str(case)] = spec_from_config(tiny.read_golden(tiny.GOLDEN / f"{case}.npz")[0], str(case))
    for name, fff in trees.CASES.items():
        found[f"fff-{name}"] = spec_from_config({**trees.BASE, "fff": fff}, name)
    return found


def formats(spec: ModelSpec, quant: str = "q8") -> dict[str, str]:
    head = "f16"
    matrices = [tensor for tensor in tensors(spec).values() if tensor.is_matrix]
    return {t.name: "f32" if t.role == "router" else head if t.name == "embed" else quant for t in matrices}


def test_the_formula_is_the_prediction_at_a_models_own_settings() -> None:
    for name, spec in specs().items():
        of = terms(spec, formats(spec), "f16")
        for context in (1, 9, 40):
            predicted = predict_bytes(spec, formats(spec), "f16", [0], [context - 1], 1)
            assert touched(of, Settings(context)) == predicted, name
        cache = sum(term.bytes for term in of if term.by in ("position", "slot"))
        assert stored(of, Settings(1)) - cache == sum(packed_bytes(spec, formats(spec)).values()), name


def test_the_formula_knows_a_head_in_two_passes() -> None:
    for spec in (coarse_decoder(), coarse_decoder(tied=True)):
        of_matrices = WithCoarseHead(spec).formats
        for read in (None, 7):
            of = terms(spec, of_matrices, "f16", read)
            assert touched(of, Settings(9)) == predict_bytes(
                spec, of_matrices, "f16", [0], [8], 1, best_blocks=read
            )  # fmt: skip
            cache = sum(term.bytes for term in of if term.by == "position")
            assert stored(of, Settings(1)) - cache == sum(packed_bytes(spec, of_matrices).values())


def test_the_formula_is_the_prediction_of_another_model() -> None:
    """Sliders moved from one model to its sibling with other experts, deeper trees, another format."""

    def moved(spec: ModelSpec, to: ModelSpec, settings: Settings, quant: str = "q8") -> None:
        of = terms(spec, formats(spec), "f16")
        assert touched(of, settings) == predict_bytes(to, formats(to, quant), "f16", [0], [settings.context - 1], 1)
        cache = sum(term.bytes * settings.context for term in of if term.by == "position")
        assert stored(of, settings) - cache == sum(packed_bytes(to, formats(to, quant)).values())

    def with_router(spec: ModelSpec, **changes: int) -> ModelSpec:
        layers = []
        for layer in spec.layers:
            assert layer.feed_forward.router is not None
            router = replace(layer.feed_forward.router, **changes)
            layers.append(replace(layer, feed_forward=replace(layer.feed_forward, router=router)))
        return replace(spec, layers=tuple(layers))

    found = specs()
    moe, tree, neurons = found["mixtral-plain"], found["fff-plain"], found["fff-neurons"]
    moved(moe, with_router(moe, n_experts=20), Settings(9, doublings=2))
    moved(moe, with_router(moe, top_k=4), Settings(9, top_k=4))
    moved(tree, with_router(tree, depth=5), Settings(9, doublings=2))
    moved(neurons, with_router(neurons, depth=2), Settings(9, doublings=-1))


def test_fewer_bits_scale_the_matrices_alone() -> None:
    spec = specs()["mixtral-plain"]
    of = terms(spec, formats(spec), "f16")
    whole, half = touched(of, Settings(9)), touched(of, Settings(9, scale=0.5))
    assert (half["router"], half["kv"]) == (whole["router"], whole["kv"])
    assert whole["experts"] == 2 * half["experts"]
    large = shape_spec("1b", "moe")
    assert math.isclose(whatif.own_bits(large, shape_formats(large, "q8")), 8.5, rel_tol=0.01)


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's JavaScript")
def test_the_script_computes_what_the_formula_does() -> None:
    cases = []
    for spec in specs().values():
        of = terms(spec, formats(spec), "f16")
        for s in (Settings(9), Settings(40, 3, 1, 0.37), Settings(5000, 1, -2, 1.9)):
            cases.append(([asdict(term) for term in of], asdict(s), sum(touched(of, s).values()), stored(of, s)))
    code = f"{SCRIPT}\nconst f = formula();\nconst cases = JSON.parse(require('fs').readFileSync(0));\n" + (
        "for (const [t, s, a, b] of cases) if (f.touched(t, s) !== a || f.stored(t, s) !== b)\n"
        "  { console.log(t, s, a, b, f.touched(t, s), f.stored(t, s)); process.exit(1) }\nconsole.log(cases.length)"
    )
    ran = subprocess.run(["node", "-e", code], input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert ran.stdout == f"{len(cases)}\n", ran.stdout[-2000:] + ran.stderr[-2000:]


# The command


def test_the_command_writes_page_data_and_pictures(folders: dict[str, Path], text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "t.txt").write_text(text)
    arguments = ("--text", tmp_path / "t.txt", "-c", 24, "--json", tmp_path / "r.json", "--png", tmp_path / "png")
    result = invoke(*folders.values(), *arguments, "-t", 1, "--quant", "q8", "-o", tmp_path / "r.html")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    stored = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (stored["text"], [m["format"] for m in stored["models"]]) == ("t.txt", ["q8"] * 3)
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Perplexity is of t.txt" in html
    for m in stored["models"]:
        assert f"{drawing.megabytes(m['decode']['bytes'])} MB touched per token" in html
    pngs = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert pngs == ["bytes.png", "distinct.png", "roofline.png", "tradeoff.png"]
    assert (tmp_path / "png" / "bytes.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_fails_is_named_and_the_others_appear(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["moe"], broken)
    (broken / "model.safetensors").write_bytes(b"no")
    result = invoke(folders["dense"], tmp_path / "missing", broken, folders["fff"], "-o", tmp_path / "r.html", "-c", 16)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "missing" in errors[0]
    assert "broken" in errors[1]
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("Could not be measured") == 2
    assert "A dense" in html
    assert "B fff" in html


def test_nothing_is_written_when_nothing_was_measured(tmp_path: Path) -> None:
    result = invoke(tmp_path / "missing", "-o", tmp_path / "r.html")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: no model could be measured; nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "shipped_model", lambda name: None)
    (tmp_path / "file").write_text("")

    def fails(message: str, *arguments: object, code: int = 1) -> None:
        result = invoke(*arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.stderr
        assert message in result.stderr

    fails("no models are named", "-o", tmp_path / "r.html")
    fails("100m, 1b, 7b", "--shapes", "2b", "-o", tmp_path / "r.html", code=2)
    fails("cannot be written", "x", "-o", tmp_path / "nowhere" / "r.html")
    fails("expected a name that ends with .html", "x", "-o", tmp_path / "r.txt")
    fails("expected a name that ends with .json", "x", "-o", tmp_path / "r.html", "--json", tmp_path / "r.html")
    fails("is a file; name a folder", "x", "-o", tmp_path / "r.html", "--png", tmp_path / "file")
    fails("No such file", "x", "-o", tmp_path / "r.html", "--text", tmp_path / "none.txt")
    assert invoke("x", "-c", 1).exit_code == 2
    monkeypatch.setattr(collect, "find_spec", lambda name: None)
    fails("--png needs matplotlib", "x", "-o", tmp_path / "r.html", "--png", tmp_path / "png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_matplotlib_is_imported_for_pictures_alone() -> None:
    code = "import sys; from lapinfer.report import collect, page; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_an_empty_text_is_refused(folders: dict[str, Path]) -> None:
    found = collect.collect([str(folders["dense"])], options=collect.Options(LoadOptions(threads=1), context=64))
    assert found.text == "the package's passage.txt"
    with pytest.raises(InputError, match="empty"):
        texts.sample_ids(_FakeText(), 10, "")  # type: ignore[arg-type]


class _FakeText:
    def encode(self, text: str) -> list[int]:
        return []


def test_shares_of_the_roofline(report: Report) -> None:
    machine = Machine({}, 1, 1e9, {"int8": 1e10})
    step = replace(report.models[0].decode, bytes=1000, macs=1, seconds=2e-6)
    assert machine.share(step, "int8") == pytest.approx(0.5)


def machine_and_model(report: Report, share: float, caches: int, slowest: float = 1e9) -> Report:
    """The report's first model, at this share of a machine's roofline."""
    machine = Machine({"lapinfer": "1"}, 1, 1e9, {"int8": 1e18, "float32": 1e18}, slowest, caches)
    model = report.models[0]
    decode = replace(model.decode, seconds=model.decode.bytes / 1e9 / share)
    prompt = replace(model.prompt, seconds=model.prompt.bytes / 1e9)
    return replace(report, machine=machine, models=[replace(model, decode=decode, prompt=prompt)])


@pytest.mark.parametrize(
    ("share", "caches", "told", "not_told"),
    [
        (0.9, 0, "90 %", "Above the roof"),
        (1.24, 1 << 40, "More than 100 %: the weights of", "Above the roof"),
        (1.24, 0, "bandwidth was measured too low", "(124 %)"),
    ],
)
def test_caches_explain_only_what_fits_them(
    report: Report, share: float, caches: int, told: str, not_told: str
) -> None:
    text = page(machine_and_model(report, share, caches))
    assert told in text
    assert not_told not in text


def test_a_busy_machine_is_told(report: Report) -> None:
    assert "went from 0.6 to 1.0 GB/s" in page(machine_and_model(report, 0.9, 0, slowest=0.6e9))
    assert "other programs ran" not in page(machine_and_model(report, 0.9, 0, slowest=0.95e9))
    machine = Machine({}, 1, 1e9, {}, 1e9).also(0.5e9).also(2e9)
    assert (machine.slowest, machine.bandwidth) == (0.5e9, 2e9)
