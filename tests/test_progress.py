"""Progress: what long work tells, the end that is foreseen, one line on a terminal, and nothing of it in a pipe."""

import io
import math
import random
import re
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.cli.bars import APPEARS, Progress, line
from lapinfer.cli.console import note, print_figures, say
from lapinfer.cli.eta import Pace
from lapinfer.digits import counted, duration, many, measured, number, size
from lapinfer.progress import Count, Phase
from lapinfer.shown import columns

PACKING = Phase("packing", "weights", beside="loss 3.210", said="packing 135 M weights (once)", part=(3, 3))
TOTAL = 135_000_000
SMALLEST, LARGEST = 1e-9, 1e15


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(5.967753887176514), "5.968"), (number(1234567.8901), "1,234,568"), (number(0.00012345), "0.0001234"),
        (number(1.23e-05), "1.230e-05"), (number(0.0), "0"), (number(4096), "4,096"), (number(-3.2), "-3.2"),
        (number(math.nan), "nan"), (measured(33.10482, 0.4123), "33.10 ± 0.41"), (measured(3.5, 0.0), "3.5"),
        (size(0), "0 B"), (size(999_999), "1.0 MB"), (size(5_301_234), "5.3 MB"), (size(99_960_000), "100 MB"),
        (size(1.24e9), "1.2 GB"), (many(135e6), "135 M"), (many(9_999), "9,999"),
        (duration(0.04), "0.0 s"), (duration(9.96), "10 s"), (duration(59.7), "1 min"), (duration(130), "2 min 10 s"),
        (duration(3599.8), "1 h"), (duration(4810), "1 h 20 min"), (duration(86_399), "1 d"),
        (duration(1e6), "11 d 14 h"),
        (counted(3, 8, "steps"), "3/8 steps"), (counted(84e6, 135e6, "weights"), "84/135 M weights"),
        (counted(12.1e6, 1.2e9, "bytes"), "12.1 MB/1.2 GB"), (counted(5, None, "texts"), "5 texts"),
        (counted(5, 9, ""), ""), (counted(2_135_274, 2_617_592, "weights"), "2.1/2.6 M weights"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_people_read(shown: str, expected: str) -> None:
    assert shown == expected


def test_no_number_is_long() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        value = math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
        text = number(value)
        assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-4 if value < 1e4 else 1e-4)
        assert sum(c.isdigit() for c in text.split("e")[0].lstrip("0.")) <= max(
            4, math.ceil(math.log10(value) + 1e-9) + 1
        )
        assert len(size(value)) <= 7
        assert len(duration(min(value, 1e9))) <= 13


def test_figures_of_a_command_are_short_for_people_and_whole_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"loss": 5.967753887176514, "parameters": 1_234_567, "pair": [0.1 + 0.2, 4096], "exact": True}
    print_figures(figures, json=False)
    assert capsys.readouterr().out.split("\n")[:4] == [
        "loss        5.968", "parameters  1,234,567", "pair        0.3, 4096", "exact       True",
    ]  # fmt: skip
    print_figures(figures, json=True)
    assert "5.967753887176514" in capsys.readouterr().out


def test_an_end_is_foreseen_from_what_was_measured_and_stays() -> None:
    """Steps of half a second that vary by half: the end that is shown is never far off, and hardly ever moves."""
    rng, pace, now, ends = random.Random(1), Pace(40, 200), 0.0, []
    assert pace.left(5.0) is None
    for step in range(41, 200):
        seconds = rng.uniform(0.25, 0.75)
        now += seconds
        pace.count(step, 200, seconds)
        if (left := pace.left(0.0)) is not None:
            assert left == pytest.approx((200 - step) * 0.5, rel=0.5, abs=3)
            ends.append(now + left)
    assert len(ends) > 150
    assert sum(abs(a - b) > 1e-6 for a, b in pairwise(ends)) < 15
    assert pace.rate == pytest.approx(2, rel=0.2)


def test_a_count_that_is_late_makes_the_end_later_and_time_passes_without_one() -> None:
    pace = Pace(0, 10)
    for step in range(1, 6):
        pace.count(step, 10, 1.0)
    assert pace.left(0.0) == pytest.approx(5)
    assert pace.left(0.6) == pytest.approx(4.4)
    late = pace.left(20.0)
    assert late is not None
    assert late > 10


def test_a_phase_that_begins_anew_forgets_what_it_had() -> None:
    pace = Pace(0, 10)
    pace.count(10, 10, 1.0)
    assert pace.is_done
    pace.count(0, 20, 1.0)
    assert (pace.rate, pace.left(9.0), pace.is_done) == (None, None, False)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_fits_into_any_terminal(encoding: str) -> None:
    for phase in (PACKING, Phase("日本" * 9, "bytes"), Phase("trials")):
        for done, total in ((0, TOTAL), (84e6, TOTAL), (TOTAL, TOTAL), (7, None)):
            pace = Pace(0, total)
            pace.count(done, total, 30.0)
            for width in range(1, 140):
                text = line(phase, pace, 0.0, width, encoding)
                assert columns(text) <= max(width, 0)
                assert encoding != "ascii" or phase != PACKING or text.isascii()


def test_what_a_line_says() -> None:
    pace = Pace(0, TOTAL)
    pace.count(84e6, TOTAL, 84.0)
    assert [line(PACKING, pace, 0.0, width) for width in (79, 59, 39, 26, 5)] == [
        "3/3 packing  ━━━━━━━━━━───────   62 %  84/135 M weights   loss 3.210  51 s left",
        "3/3 packing  ━━━━━━━━━───────   62 %  loss 3.210  51 s left",
        "3/3 packing  ━━━━────   62 %  51 s left",
        " 62 %  51 s left",
        " 62 %",
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr. Called by the test itself: pytest puts its own there when that begins."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return found


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pack(clock: Clock, seconds: float, steps: int = 10) -> None:
    with Progress(still=True, clock=clock) as progress:
        for step in range(steps + 1):
            progress(PACKING, step * TOTAL / steps, TOTAL)
            clock.now += seconds / steps


def screen(text: str) -> list[str]:
    """Lines as a terminal shows them at the end: what was cleared is gone."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [part.split("\r\x1b[2K")[-1] for part in text.split("\n")]


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    pack(Clock(), APPEARS - 0.01)
    assert terminal.getvalue() == ""


def test_long_work_shows_a_bar_which_goes_and_leaves_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    pack(Clock(), 20)
    shown = terminal.getvalue()
    assert "3/3 packing" in shown
    assert " 50 %" in shown
    assert "left" in shown
    assert "(once)" not in shown  # which is for logs
    assert screen(shown) == ["packing 20 s", ""]


def test_lines_stand_around_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = terminal_of(monkeypatch)
    clock = Clock()
    with Progress(still=True, clock=clock) as progress:
        progress(PACKING, 0, TOTAL)
        clock.now += 1
        progress(PACKING, 1, TOTAL)
        note("a notice")
        progress(PACKING, 2, TOTAL)
        say("an answer")
        assert terminal.getvalue().endswith("\r\x1b[2K")
    assert screen(terminal.getvalue()) == ["a notice", ""]
    assert capsys.readouterr().out == "an answer\n"


def test_an_error_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    clock = Clock()
    with suppress(KeyboardInterrupt), Progress(still=True, clock=clock) as progress:
        progress(PACKING, 0, TOTAL)
        clock.now += 9
        progress(PACKING, 1, TOTAL)
        assert "packing" in screen(terminal.getvalue())[0]
        raise KeyboardInterrupt
    assert screen(terminal.getvalue()) == [""]


def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    pack(Clock(), 5)
    assert set(re.findall(r"\x1b\[[0-9;]*[a-zA-Z]", terminal.getvalue())) == {"\x1b[2K"}


@pytest.mark.parametrize("kind", ["dumb", "pipe"])
def test_where_no_bar_can_be_drawn_a_phase_has_one_plain_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", kind)
    if kind == "pipe":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    pack(Clock(), 20)
    assert terminal.getvalue() == "packing 135 M weights (once)\n"


def test_time_belongs_to_the_phase_that_was_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_of(monkeypatch)
    clock = Clock()
    with Progress(still=True, clock=clock) as progress:
        for done in range(3):
            progress("a", done, 2)
            clock.now += 1
            progress("b", done, 2)
            clock.now += 10
        assert progress.summary() == "a 2.0 s, b 20 s"  # what follows their ends is nobody's


def test_steps_from_several_places_are_one_phase() -> None:
    told: list[tuple[str, str, float, float]] = []
    count = Count(lambda phase, done, total: told.append((phase, phase.beside, done, total)), "measuring", 3, "runs")
    count("a: pp512")
    count("b: pp512")
    count.end()
    assert told == [("measuring", "a: pp512", 0, 3), ("measuring", "b: pp512", 1, 3), ("measuring", "", 2, 3)]


TEXT = Path(__file__).parent.parent / "README.md"
LINES = {
    "run": ["-m", "austen-fff", "-n", "2", "Hello"], "serve": ["--port", "x"], "info": ["austen-fff"],
    "explain": ["austen-fff"], "convert": ["austen-fff", "{tmp}/packed", "--quant", "q8"], "bench": ["{tmp}/gone"],
    "perplexity": ["austen-fff", str(TEXT), "--chunks", "1"], "experts": ["austen-fff", str(TEXT), "--chunks", "1"],
    "embed": ["austen-fff", "{tmp}/text"], "report": ["{tmp}/gone", "-o", "{tmp}/r.html"], "train": ["{tmp}/gone", "x"],
    "pull": ["no such name"], "verify": ["austen-fff"], "fff-sizes": [], "ls": [],
}  # fmt: skip
"""What each command is tried with; one that is new is asked for its help."""


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))  # pyright: ignore
def test_what_is_piped_has_no_escape_sequences(command: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a fox\n\na hare\n")
    arguments = [each.format(tmp=tmp_path) for each in LINES.get(command, ["--help"])]
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code in (0, 1, 2)
    assert done.output
    assert not re.search("[\x00-\x08\x0b-\x1f]", done.output)
