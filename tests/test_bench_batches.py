"""Sequences that `lapinfer bench --batch` decodes together: their turns, figures and bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, byte_tokenizer_folder, install
from test_best import TWICE, WithCoarseHead, two_passes
from test_best import decoder as coarse_decoder
from test_bytes import model_of, spec_of
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.errors import DoesNotFitError, InputError
from lapinfer.loading import load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions, SamplingParams
from lapinfer.quant.choice import TYPICAL_BEST
from lapinfer.report import bench as bench_module
from lapinfer.report import roofline
from lapinfer.report.bench import bench
from lapinfer.report.bench_copied import Copied
from lapinfer.report.bench_runs import About, Row, Runs
from lapinfer.report.bench_tables import WRITERS, compared, read_rows, to_markdown
from lapinfer.report.candidates import Candidate
from lapinfer.report.costs import Costs
from lapinfer.report.roofline import Roofline
from lapinfer.runtime.ops import Limits
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.sampling import Sampler

ABOUT = About(Roofline(1, {1: 2e10}, {"int8": 1e11, "float32": 1e10}), "random", None, None)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that needs no measuring."""
    monkeypatch.setattr(roofline, "bandwidth_now", lambda threads: 2e10)
    monkeypatch.setattr(roofline, "measure", lambda threads, seconds: ABOUT.machine)


@pytest.mark.parametrize("name", ["llama-plain", "qwen3_moe-plain", "trees"])
@pytest.mark.parametrize("sequences", [1, 2, 3])
@pytest.mark.usefixtures("quiet")
def test_predicted_bytes_are_the_metered_ones(name: str, sequences: int) -> None:
    """Of each step to the byte, with the experts that it chose; of a dense model without knowing them."""
    (model, _), spec = model_of(name, "q8", "f16"), spec_of(name)
    ids = np.random.default_rng(0).integers(0, spec.vocab, (sequences, 24), np.int32)
    runs = Runs(model, ids, 0, 3, 2)
    runs.once(counted=True)
    read = []
    for pos in range(2, 5):
        model.usage.reset()
        slots = np.arange(sequences)
        model.step(ids[:, pos], slots, np.full(sequences, pos), np.ones(sequences, bool))
        read.append(int(model.usage.bytes.sum()))
        predicted = Costs.of(model).touched(np.full(sequences, pos), sequences, slots, read_by=model)
        assert sum(predicted.values()) == read[-1]
    row = runs.row(ABOUT, None)
    assert row.touched_mb == pytest.approx(sum(read) / 3 / sequences / 1e6, rel=1e-12)
    routed = name != "llama-plain"
    assert (row.experts_read is not None) is routed
    if not routed or sequences == 1:
        assert row.predicted_mb == pytest.approx(row.touched_mb, rel=1e-12)


@pytest.mark.parametrize("sequences", [1, 2, 5])
@pytest.mark.usefixtures("quiet")
def test_a_head_in_two_passes_is_read_as_generation_reads_it(sequences: int) -> None:
    """Only the best logits, in steps of few tokens; bytes are of the row blocks that these steps have read."""
    model = coarse_model()
    assert Sampler(SamplingParams()).needed() == TYPICAL_BEST
    ids = np.random.default_rng(0).integers(0, model.spec.vocab, (sequences, 24), np.int32)
    whole = sum(Costs.of(model).touched([2]).values())
    for p, n in ((0, 3), (20, 0)):
        runs = Runs(model, ids[: sequences if n else 1], p, n, 2)
        runs.once(counted=True)
        runs.once(counted=True)
        row = runs.row(ABOUT, None)
        assert row.predicted_mb == pytest.approx(row.touched_mb, rel=1e-12)
        assert (runs.watch.blocks[-1] is not None) == (sequences <= TWICE or p > 0)
        if n and sequences == 1:
            assert row.touched_mb < whole / 1e6


def coarse_model() -> Model:
    spec = coarse_decoder(vocab=10_000)
    return two_passes(lambda: Model(spec, WithCoarseHead(spec), Limits(64, 8, 24, threads=1, activations="q16")))


class Together(FakeModel):
    """A step of any number of tokens takes as long; notes which sequences each had, and reads weights once."""

    def __init__(self, clock: list[float], takes: float, **options: Any):
        super().__init__(**options)
        self.clock, self.takes = clock, takes
        self.stepped: list[tuple[list[int], list[int], list[int]]] = []

    def step(self, token: Any, slot: Any, pos: Any, want: Any, **options: Any) -> Any:
        self.clock[0] += self.takes
        self.stepped.append((list(map(int, token)), list(map(int, slot)), list(map(int, pos))))
        return super().step(token, slot, pos, want, **options)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, quiet: None) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("lapinfer.report.timing.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("lapinfer.text.speculation.perf_counter", lambda: now[0])
    return now


def rows_of(
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    tests: bench_module.Tests,
    takes: dict[str, float] | None = None,
) -> tuple[list[Row], list[Together]]:
    models: list[Together] = []

    def opened(candidate: Candidate, options: LoadOptions, progress: Any = None) -> LanguageModel:
        model = Together(clock, (takes or {"a": 0.01})[candidate.name], ctx=options.ctx or 64, slots=options.slots)
        model.name = candidate.name
        models.append(model)
        return LanguageModel(model)  # type: ignore[arg-type]

    monkeypatch.setattr(Candidate, "open", opened)
    found = list(bench([Candidate(name) for name in takes or {"a": 0.01}], LoadOptions(), tests))
    rows = [row for _, row in sorted(found, key=lambda one: one[0]) if isinstance(row, Row)]
    assert len(rows) == len(found)
    return rows, models


def test_sequences_take_turns_and_are_set_beside_one(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], tmp_path: Path
) -> None:
    rows, (model,) = rows_of(monkeypatch, clock, bench_module.Tests((), (4,), (0,), (1, 4), 5))
    assert [row.test for row in rows] == ["tg4", "tg4 x4"]
    one, four = rows
    assert (one.sequences, four.sequences, model.slots) == (1, 4, 4)
    assert (round(one.avg_ts), round(four.avg_ts)) == (100, 400)  # a step takes 10 ms, whatever it has
    assert (one.ts_relative, one.mb_relative) == (None, None)
    assert four.ts_relative == pytest.approx(4)
    assert four.tpot_p50_ms == pytest.approx(10)
    decoded = [len(token) for token, _, pos in model.stepped if pos[0] == 3]
    assert "".join(map(str, decoded)) == "144114411441"  # one that warms up, and five rounds, there and back
    token, slot, pos = next(step for step in model.stepped if len(step[0]) == 4)
    assert (slot, pos) == ([0, 1, 2, 3], [0] * 4)
    assert len(set(token)) > 1  # each has a text of its own
    text = to_markdown(rows)
    assert "| a     | tg4 x4 |        400 | 4.00x (4.00 to 4.00) |" in text
    assert "experts" not in text
    assert WRITERS["csv"](rows).splitlines()[0].count("ts_relative") == 3
    old = tmp_path / "old.json"
    old.write_text(WRITERS["json"](rows))
    assert json.loads(old.read_text())[1]["mb_relative"] == pytest.approx(1)
    assert "tg4 x4" in compared(rows, read_rows(old))


def test_an_answer_that_repeats_its_prompt_is_guessed(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    rows, (model,) = rows_of(monkeypatch, clock, bench_module.Tests((), (40,), (2,), (1,), 5, copied=True))
    assert [row.test for row in rows] == ["tg40 @ d2", "tg40 copied @ d2"]
    one, copied = rows
    assert (one.tokens_per_step, model.ctx) == (None, 82)
    assert copied.tokens_per_step is not None
    assert copied.tokens_per_step > 3
    assert copied.ts_relative == pytest.approx(copied.tokens_per_step, rel=0.1)  # the middle one, and the mean
    assert "tokens a step" in to_markdown(rows)


@pytest.mark.parametrize("coarse", [False, True])
def test_bytes_of_guesses_are_predicted(monkeypatch: pytest.MonkeyPatch, quiet: None, coarse: bool) -> None:
    monkeypatch.setattr("lapinfer.text.speculation.QUICK", 0.0)
    monkeypatch.setattr("lapinfer.text.speculation.worth", lambda shares, seconds, gain: (len(shares), 1.0))
    model = coarse_model() if coarse else model_of("llama-plain", "q8", "f16")[0]
    runs = Copied(model, np.random.default_rng(0).integers(0, model.spec.vocab, 48, np.int32), 20, 4)
    runs.once(counted=True)
    row = runs.row(ABOUT, None)
    assert runs.tokens_per_step() > 2
    assert any(blocks is not None for blocks in runs.watch.blocks) is coarse
    assert row.predicted_mb == pytest.approx(row.touched_mb, rel=1e-12)


def test_models_take_turns_with_all_their_sequences(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    rows, _ = rows_of(monkeypatch, clock, bench_module.Tests((8,), (4,), (0, 2), (1, 2), 2), {"a": 0.01, "b": 0.02})
    assert [row.test for row in rows[:6]] == ["pp8", "pp8 @ d2", "tg4", "tg4 x2", "tg4 @ d2", "tg4 x2 @ d2"]
    assert all(row.paired for row in rows)
    assert [round(row.avg_ts) for row in rows if row.test == "tg4 x2"] == [200, 100]
    text = to_markdown(rows)
    assert "fewer than 5 turns" in text  # a ratio of two turns says nothing
    assert text.startswith("| pp8 and tg4")


def test_without_one_sequence_nothing_is_set_beside_it(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    (row,), _ = rows_of(monkeypatch, clock, bench_module.Tests((), (4,), (0,), (2,), 5))
    assert (row.ts_relative, row.mb_relative) == (None, None)
    assert "| tg4 x2 |" in to_markdown([row])


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapinfer.loading.available_memory", lambda: 1)
    with pytest.raises(DoesNotFitError, match=r"of each of 8 sequences.*try fewer sequences"):
        load_model("austen-dense", LoadOptions(slots=8, ctx=64))
    with pytest.raises(InputError, match="from 1, got 0"):
        bench_module.Tests((), (4,), (0,), (0,))
    with pytest.raises(InputError, match="-n is 0"):
        bench_module.Tests((4,), (0,), (0,), (2,))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(byte_tokenizer_folder(tmp_path / "m"), ctx=64, slots=4, experts=8)
    install(monkeypatch, lambda: model)
    fast = ["bench", "x", "-p", "0", "-n", "2", "-r", "1"]
    result = CliRunner().invoke(app, [*fast, "--batch", "1,4", "-o", "json"])
    assert [row["sequences"] for row in json.loads(result.stdout)] == [1, 4]
    assert CliRunner().invoke(app, [*fast, "--batch", "1,x"]).exit_code == 2
    assert CliRunner().invoke(app, [*fast, "--batch", "0"]).exit_code == 2
    model.max_step = 2
    result = CliRunner().invoke(app, [*fast, "--batch", "4"])
    assert result.exit_code == 3
    assert "--memory leaves room for the experts of 2 tokens in a step, and 4 sequences" in result.stderr
