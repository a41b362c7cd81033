"""A batch from its lines to its output, with answers that take no model: order, kills, and what is in the way."""

import json
import os
import random
from contextlib import contextmanager

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("starlette")
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.batch.files import open_source
from lapinfer.batch.journal import journal_of
from lapinfer.batch.lines import LONGEST, Line
from lapinfer.batch.records import Answered
from lapinfer.batch.run import run, run_to_stream
from lapinfer.errors import InputError, LapinferError

ABOUT = {"version": "1", "model": "a", "sampling": {"temperature": 0.5}}


class Stop(BaseException):
    """What ends a process at once."""


class Answering:
    """Answers with what a line is, in a shuffled order; counts lines that were asked for. most: how many it answers
    before it stops."""

    def __init__(self, most=None, error=Stop, ahead=4):
        self.most, self.error, self.ahead = most, error, ahead
        self.asked, self.told, self.most_live = [], [], 0

    @contextmanager
    def __call__(self):
        yield self.answers

    def answers(self, lines):
        waiting, chance, lines = [], random.Random(7), iter(lines)
        while True:
            while len(waiting) < self.ahead and (line := next(lines, None)) is not None:
                self.asked.append(line.number)
                waiting.append(line)
            self.most_live = max(self.most_live, len(waiting))
            if not waiting:
                return
            if self.most is not None and len(self.told) == self.most:
                raise self.error
            line = waiting.pop(chance.randrange(len(waiting)))
            self.told.append(line.number)
            yield record_of(line)


def record_of(line):
    text = line.text.decode(errors="replace")
    named = int(text) if text.isdigit() else 0
    return Answered(line.number, line.digest, json.dumps([line.number, text]).encode(), text == "bad", 3, 2, named)


@pytest.fixture
def source(tmp_path):
    """Makes a file of lines; gives its path."""

    def made(lines, name="in.jsonl"):
        (tmp_path / name).write_bytes(
            b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines)
        )
        return tmp_path / name

    return made


def answered(path, target, answering=None, **more):
    return run(open_source(str(path)), target, answering or Answering(), ABOUT, **more)


def expected(lines):
    return b"".join(json.dumps([number, str(line)]).encode() + b"\n" for number, line in enumerate(lines, 1))


def test_answers_stand_in_the_order_of_the_lines(source, tmp_path):
    lines, target = ["a", "bad", *range(50)], tmp_path / "out.jsonl"
    summary = answered(source(lines), target)
    assert target.read_bytes() == expected(lines)
    assert (summary.sums.lines, summary.sums.failed, summary.before, summary.read, summary.made) == (52, 1, 0, 156, 104)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


@given(stops=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 80)), max_size=4), garbage=st.binary(max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_line_once_whatever_is_killed_and_torn(tmp_path_factory, stops, garbage):
    """A kill after some answers, and of what was written last, any number of bytes that never came."""
    folder = tmp_path_factory.mktemp("batch")
    lines, target = ["ä" * n for n in range(1, 50)], folder / "out.jsonl"
    path = folder / "in.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for most, torn in stops:
        with pytest.raises(Stop):
            answered(path, target, Answering(most))
        journal = journal_of(target)
        written = journal.read_bytes()
        first = written.index(b"\n") + 1
        journal.write_bytes(written[: max(len(written) - torn, first)] + garbage.replace(b"\n", b""))
        before = journal.read_bytes().count(b"\n") - 1
        again = Answering(0)
        if before < len(lines):
            with pytest.raises(Stop):
                answered(path, target, again)
        assert len(again.asked) <= again.ahead
        assert journal.read_bytes().count(b"\n") - 1 == before
    last = Answering()
    done = journal_of(target).read_bytes().count(b"\n") - 1 if journal_of(target).exists() else 0
    summary = answered(path, target, last)
    assert len(last.told) == len(lines) - done == len(set(last.told))
    assert (summary.before, summary.sums.lines) == (done, len(lines))
    assert target.read_bytes() == expected(lines)
    assert not journal_of(target).exists()


@pytest.mark.parametrize("length", [0, 1, 20, 40])
def test_a_journal_whose_head_is_torn_is_begun_anew(source, tmp_path, length):
    target = tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        answered(source("abc"), target, Answering(1))
    journal = journal_of(target)
    journal.write_bytes(journal.read_bytes()[:length])
    assert answered(source("abc"), target).before == 0


def test_a_damaged_line_and_what_follows_is_done_again(source, tmp_path):
    target, lines = tmp_path / "out.jsonl", list(range(20))
    with pytest.raises(Stop):
        answered(source(lines), target, Answering(9))
    journal = journal_of(target)
    whole = journal.read_bytes().splitlines(keepends=True)
    whole[4] = whole[4].replace(b"[", b"{")
    journal.write_bytes(b"".join(whole))
    assert answered(source(lines), target).before == 3
    assert target.read_bytes() == expected(lines)


@pytest.mark.parametrize(
    ("changed", "number"),
    [("abXdefgh", 3), ("bcdefgh", 1), ("ab", 3), ("", 1)],
    ids=["another", "moved", "cut", "empty"],
)
def test_an_input_that_has_changed_is_refused(source, tmp_path, changed, number):
    target = tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        answered(source("abcdefgh"), target, Answering(3, ahead=1))
    before = journal_of(target).read_bytes()
    with pytest.raises(InputError, match=f"line {number} of the input is no longer the one"):
        answered(source(changed), target)
    assert journal_of(target).read_bytes() == before
    assert answered(source("abcdefghij"), target).before == 3  # more lines are welcome
    assert target.read_bytes() == expected("abcdefghij")


def test_a_batch_of_another_model_is_not_gone_on_with(source, tmp_path):
    target = tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        answered(source("abc"), target, Answering(1))
    other = ABOUT | {"model": "b"}
    with pytest.raises(
        InputError, match='begun with another model \\("a", now "b"\\): go on with the same, or remove it'
    ):
        run(open_source(str(source("abc"))), target, Answering(), other)


def test_what_is_there_already_stays(source, tmp_path):
    path, target = source("abc"), tmp_path / "out.jsonl"
    target.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        answered(path, target)
    answered(path, target, force=True)
    assert target.read_bytes() == expected("abc")
    target.unlink()
    journal_of(target).write_text("mine\n")
    with pytest.raises(InputError, match="not written by lapinfer batch"):
        answered(path, target)
    with pytest.raises(InputError, match=r"its folder .* is not there"):
        answered(path, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(InputError, match="same file"):
        answered(path, path, force=True)


def test_two_processes_do_not_answer_one_batch(source, tmp_path):
    path, target = source("abc"), tmp_path / "out.jsonl"

    class Second(Answering):
        def answers(self, lines):
            with pytest.raises(InputError, match="answers this batch now"):
                answered(path, target)
            yield from super().answers(lines)

    answered(path, target, Second())
    assert target.read_bytes() == expected("abc")


def test_an_error_in_the_middle_says_how_to_go_on(source, tmp_path):
    notes = []
    error = LapinferError("line 5: there is not enough memory to answer it now")
    with pytest.raises(LapinferError, match="not enough memory"):
        answered(source("abcdef"), tmp_path / "o", Answering(4, error), progress=lambda *told: notes.append(told))
    assert (f"4 of 6 lines are done, and kept in {tmp_path / 'o.part'}: the same command goes on",) in notes
    with pytest.raises(LapinferError):
        answered(source("abcdef"), tmp_path / "p", Answering(0, error))
    assert not journal_of(tmp_path / "p").exists()  # there was nothing to keep


def test_a_full_disk_leaves_whole_lines(source, tmp_path, monkeypatch):
    path, target = source("abcdef"), tmp_path / "out.jsonl"
    import lapinfer.batch.journal as module

    class Full(module.io.FileIO):
        written = 0

        def write(self, data):
            Full.written += 1
            if Full.written == 4:
                return super().write(data[: len(data) // 2])
            if Full.written == 5:
                raise OSError(28, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patched:
        patched.setattr(module.io, "FileIO", Full)
        with pytest.raises(InputError, match=r"out\.jsonl\.part: cannot be written: No space left on device"):
            answered(path, target)
    assert journal_of(target).read_bytes().count(b"\n") == 3
    assert journal_of(target).read_bytes().endswith(b"\n")
    assert answered(path, target).before == 2
    assert target.read_bytes() == expected("abcdef")


def test_only_lines_in_flight_are_in_memory(source, tmp_path):
    live = 0

    class Counted(Line):
        def __init__(self, *arguments):
            nonlocal live
            super().__init__(*arguments)
            live += 1

        def __del__(self):
            nonlocal live
            live -= 1

    class Source:
        name, again = "lines", True

        def lines(self):
            return (Counted(number, b"a") for number in range(1, 3001))

    most = 0

    class Watching(Answering):
        def answers(self, lines):
            nonlocal most
            for done in super().answers(lines):
                most = max(most, live)
                yield done

    run(Source(), tmp_path / "out.jsonl", Watching(), ABOUT)
    assert most <= 8


def test_lines_of_all_kinds_of_files(source):
    def lines(*parts, name="in.jsonl"):
        return [(line.number, line.text) for line in open_source(str(source(parts, name))).lines()]

    assert lines(b"\xef\xbb\xbfa\r\n", b"\r\n", b"  \n", b"b") == [(1, b"a"), (4, b"b")]
    assert lines(b"") == []
    long = b"a" * (LONGEST + 5)
    ((first, text), second) = lines(long, b"\n", b"b\n")
    assert (first, len(text), second) == (1, LONGEST + 1, (2, b"b"))
    assert lines('say "hi"', b"\xff\n", "ä", name="in.txt") == [
        (1, b'"say \\"hi\\""'),
        (2, b"\xff"),
        (3, '"ä"'.encode()),
    ]
    with pytest.raises(InputError, match="expected UTF-8, got UTF-16-LE: convert it"):
        lines("a".encode("utf-16"))
    with pytest.raises(InputError, match=r"nothing\.jsonl: cannot be read: No such file"):
        open_source("nothing.jsonl")


def test_to_a_stream_as_they_are_done(source):
    from io import BytesIO

    out = BytesIO()
    summary = run_to_stream(open_source(str(source([1, 2, 3, 1, "bad"]))), out, Answering())
    assert sorted(out.getvalue().splitlines()) == sorted(expected([1, 2, 3, 1, "bad"]).splitlines())
    assert (summary.sums.lines, summary.sums.failed, summary.sums.repeated()) == (5, 1, 2)
