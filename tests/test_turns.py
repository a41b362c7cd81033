"""Models are measured in turns: their order, machines that drift, failures, memory; with fake models and clocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel

from lapinfer.errors import CheckpointError, DoesNotFitError
from lapinfer.options import LoadOptions
from lapinfer.report import bench as bench_module
from lapinfer.report import roofline, timing
from lapinfer.report.against import Figures, against_dense
from lapinfer.report.bench import Row, bench
from lapinfer.report.bench_tables import to_markdown
from lapinfer.report.candidates import Candidate
from lapinfer.report.roofline import Roofline
from lapinfer.report.turns import Loaded, Turn, take_turns
from lapinfer.text.language_model import LanguageModel

ROOM = 100


class Sides:
    """Sides that note what happens to them; a side's turn is whatever `measure` says."""

    def __init__(self, measure: Callable[[str], Any] = lambda name: name, needs: dict[str, int] | None = None):
        self.measure, self.needs, self.events = measure, needs or {}, list[str]()

    def side(self, name: str, turns: int) -> Callable[[], Generator[Loaded | Any, None, None]]:
        def run() -> Generator[Loaded | Any, None, None]:
            self.events.append(f"load {name}")
            try:
                yield Loaded(self.needs.get(name, 1))
                for turn in range(turns):
                    self.events.append(f"{name}{turn}")
                    yield self.measure(name)
            finally:
                self.events.append(f"close {name}")

        return run

    def run(self, names: str, turns: int = 3) -> list[Turn[Any]]:
        self.notes: list[str] = []
        return list(take_turns([self.side(name, turns) for name in names], ROOM, self.notes.append))


def measured(events: Sequence[str]) -> list[str]:
    return [event for event in events if " " not in event]


def test_round_r_of_all_comes_before_the_next_and_goes_back_where_the_last_ended() -> None:
    sides = Sides()
    turns = sides.run("ABC")
    assert sides.events[:3] == ["load A", "load B", "load C"]
    assert measured(sides.events) == ["A0", "B0", "C0", "C1", "B1", "A1", "A2", "B2", "C2"]
    assert [turn.value for turn in turns] == list("ABCCBAABC")
    assert all(turn.paired for turn in turns)
    assert [event for event in sides.events if "close" in event] == ["close C", "close B", "close A"]
    assert sides.notes == []


@pytest.mark.parametrize("needs", [{"A": 60, "B": 60}, {"C": 200}])
def test_models_that_do_not_fit_together_come_one_after_the_other(needs: dict[str, int]) -> None:
    sides = Sides(needs=needs)
    turns = sides.run("ABC", 2)
    assert measured(sides.events) == ["A0", "A1", "B0", "B1", "C0", "C1"]
    assert not any(turn.paired for turn in turns)
    assert ["do not fit" in note.replace("not all models fit", "do not fit") for note in sides.notes] == [True]
    after = sides.events[sides.events.index("A0") :]
    assert after.index("close A") < after.index("load B")  # nothing of the others is held meanwhile


def test_a_model_that_fits_only_alone_is_measured_alone() -> None:
    """Loading says so itself, as it counts what others hold."""
    held: list[str] = []

    def side(name: str) -> Callable[[], Generator[Loaded | str, None, None]]:
        def run() -> Generator[Loaded | str, None, None]:
            if name == "B" and held:
                raise DoesNotFitError("B: needs more")
            held.append(name)
            try:
                yield Loaded(1)
                yield name
            finally:
                held.remove(name)

        return run

    turns = list(take_turns([side("A"), side("B")], None, lambda line: None))
    assert [(turn.side, turn.value, turn.paired) for turn in turns] == [(0, "A", False), (1, "B", False)]


def test_one_that_fails_leaves_the_others_their_turns() -> None:
    def measure(name: str) -> str:
        if name == "B":
            raise CheckpointError("B: bad")
        return name

    sides = Sides(measure)
    turns = sides.run("ABC", 2)
    assert [turn.side for turn in turns] == [0, 1, 2, 2, 0]
    assert isinstance(turns[1].value, CheckpointError)
    assert sorted(event for event in sides.events if "close" in event) == ["close A", "close B", "close C"]


def test_ctrl_c_closes_all_models() -> None:
    def measure(name: str) -> str:
        if name == "B":
            raise KeyboardInterrupt
        return name

    sides = Sides(measure)
    with pytest.raises(KeyboardInterrupt):
        sides.run("ABC")
    assert sorted(event for event in sides.events if "close" in event) == ["close A", "close B", "close C"]


# A machine that changes


class Clock:
    """A machine on which each turn takes `pace(turns so far)` seconds times what the model takes."""

    def __init__(self, pace: Callable[[int], float], takes: dict[str, float]):
        self.pace, self.takes, self.turns = pace, takes, 0

    def __call__(self, name: str) -> float:
        self.turns += 1
        return self.takes[name] * self.pace(self.turns)


def said(pace: Callable[[int], float], takes: dict[str, float]) -> str:
    """What two models, of which one routes, are said to be to each other."""
    turns = Sides(Clock(pace, takes)).run("DM", 5)
    speeds = {side: [1 / float(turn.value) for turn in turns if turn.side == side] for side in (0, 1)}  # pyright: ignore
    dense = Figures("dense", 1000, 1000, 1.0, 1.0, speeds[0], None)
    return against_dense([dense, Figures("moe", 1000, 400, 1.0, 1.0, speeds[1], None)])[0]


SAME = {"D": 1.0, "M": 1.0}
DRIFTS: dict[str, Callable[[int], float]] = {
    "slower by 3 % a turn": lambda n: 1.03**n,
    "faster by 3 % a turn": lambda n: 0.97**n,
    "half as fast from turn 6 on": lambda n: 1 if n < 6 else 2,
    "warms up": lambda n: 1 + 2.0**-n,
}


@pytest.mark.parametrize("pace", DRIFTS.values(), ids=DRIFTS)
def test_a_machine_that_drifts_makes_no_model_faster(pace: Callable[[int], float]) -> None:
    """One after the other, the second model would be up to twice as fast or slow."""
    assert "Which one decodes faster cannot be told." in said(pace, SAME)


@pytest.mark.parametrize("pace", DRIFTS.values(), ids=DRIFTS)
def test_a_model_that_is_faster_is_so_on_a_machine_that_drifts(pace: Callable[[int], float]) -> None:
    text = said(pace, {"D": 4.0, "M": 1.0})
    (times,) = re.findall(r"It decodes (\S+) times as fast", text)
    assert float(times) == pytest.approx(4, rel=0.1)


# bench


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time that only fake models let pass, and a machine whose bandwidth falls."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = Roofline(1, {1: 2e10}, {"int8": 1e11, "float32": 1e10})
    monkeypatch.setattr(roofline, "measure", lambda threads, seconds: found)
    read = iter(range(1000))
    monkeypatch.setattr(roofline, "bandwidth_now", lambda threads: 2e10 - 1e8 * next(read))
    return now


def opens(clock: list[float], takes: dict[str, float], runs: list[str]) -> Callable[..., LanguageModel]:
    def opened(candidate: Candidate, options: LoadOptions, progress: Any = None) -> LanguageModel:
        class Timed(FakeModel):
            name = candidate.name

            def step(self, token: Any, slot: Any, pos: Any, want: Any, **which: Any) -> Any:
                clock[0] += takes[candidate.name] * (3 if not self.steps else 1)  # the first step is slow
                if len(token) > 1:
                    runs.append(candidate.name)
                return super().step(token, slot, pos, want, **which)

        return LanguageModel(Timed(ctx=options.ctx or 64))  # type: ignore[arg-type]

    return opened


def rows_of(monkeypatch: pytest.MonkeyPatch, clock: list[float], takes: dict[str, float], runs: list[str]) -> list[Row]:
    monkeypatch.setattr(Candidate, "open", opens(clock, takes, runs))
    found = bench([Candidate(name) for name in takes], LoadOptions(), bench_module.Tests((8,), (4,), repetitions=5))
    placed = sorted(found, key=lambda one: one[0])
    assert all(isinstance(row, Row) for _, row in placed)
    return [row for _, row in placed if isinstance(row, Row)]


def test_bench_takes_turns(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    runs: list[str] = []
    rows = rows_of(monkeypatch, clock, {"a": 0.01, "b": 0.02}, runs)
    assert [(row.model_filename, row.test) for row in rows] == [("a", "pp8"), ("a", "tg4"), ("b", "pp8"), ("b", "tg4")]
    assert all(row.paired for row in rows)
    assert "".join(runs) == "abbaabbaabba"  # prompts: one that warms up, and five
    assert [round(row.avg_ts) for row in rows] == [800, 100, 400, 50]
    assert all(row.least_read_gb_per_s < row.best_read_gb_per_s == 20 for row in rows)
    text = to_markdown(rows)
    assert "other programs ran" in text
    assert "of different times" not in text


def test_what_warms_up_is_not_counted(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """Of each test, a whole run: one token would leave ways through the code that the test is the first to take."""
    (prompt, answer) = rows_of(monkeypatch, clock, {"a": 0.01}, [])
    assert len(set(map(round, prompt.samples_ts))) == len(set(map(round, answer.samples_ts))) == 1
    assert not prompt.paired


def test_with_a_bound_of_memory_models_are_measured_alone(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], tmp_path: Path
) -> None:
    runs: list[str] = []
    monkeypatch.setattr(Candidate, "open", opens(clock, {"a": 0.01, "b": 0.01}, runs))
    found = list(
        bench([Candidate("a"), Candidate("b")], LoadOptions(memory=1.0), bench_module.Tests((8,), (0,), repetitions=2))
    )
    assert "".join(runs) == "aaabbb"
    assert [row.paired for _, row in found if isinstance(row, Row)] == [False, False]
    rows = [row for _, row in found if isinstance(row, Row)]
    assert "not all models took turns" in to_markdown(rows)


def test_bench_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(bench_module, "available_memory", lambda: 1)
    monkeypatch.setattr(Candidate, "open", opens(clock, {"a": 0.01, "b": 0.01}, []))
    said: list[str] = []
    found = bench(
        [Candidate("a"), Candidate("b")],
        LoadOptions(),
        bench_module.Tests((8,), (0,)),
        progress=lambda *line: said.append(line[0]),
    )
    assert [row.paired for _, row in found if isinstance(row, Row)] == [False, False]
    assert [line for line in said if line.startswith("note: not all models fit in memory")]
