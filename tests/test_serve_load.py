"""The load tool of bench/ counts what a server says of itself, and tells what was lost."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from serve_load import milliseconds, slope
from stream_client import Heard, Question, read

USAGE = {"prompt_tokens": 7, "completion_tokens": 5}


def chunk(text=None, finish=None, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]} | more


def heard(*events, status=200, cut=None, end="\n\n"):
    """What came of these events, in pieces that know nothing of where one ends."""
    data = "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}{end}" for each in events).encode()
    size = cut or max(1, len(data))
    pieces = [(float(1 + place // size), data[place : place + size]) for place in range(0, len(data), size)]
    return Heard(Question("short", "?", 5), 0.5, status, pieces)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("cut", [None, 1, 7, 50])
def test_an_answer_is_read_whatever_its_pieces(cut, end):
    events = chunk(), chunk("fé"), chunk("x"), chunk(finish="stop"), {"choices": [], "usage": USAGE}, "[DONE]"
    answer = read(heard(*events, cut=cut, end=end))
    assert (answer.text, answer.tokens, answer.prompt_tokens) == ("féx", 5, 7)
    assert not answer.lost
    assert answer.error is None
    assert len(answer.arrivals) == (1 if cut is None else 2)
    assert answer.first == answer.arrivals[0] - 0.5


ENDLESS = {
    "nothing": [],
    "no end": [chunk("f")],
    "no usage": [chunk("f", "stop"), "[DONE]"],
    "not done": [chunk("f", "stop", usage=USAGE)],
    "no reason": [chunk("f", usage=USAGE), "[DONE]"],
}


@pytest.mark.parametrize("events", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_that_does_not_say_its_end_is_lost(events):
    answer = read(heard(*events))
    assert answer.lost
    assert answer.error is None


def test_errors_are_no_lost_answers():
    busy, broken = read(heard(status=429)), read(heard(chunk("f"), {"error": {"message": "no"}}))
    assert busy.error == "429: b''"
    assert broken.error == '{"message": "no"}'
    assert not busy.lost
    assert not broken.lost


def test_who_leaves_has_lost_nothing():
    one = heard(chunk("f"))
    one.left = True
    assert read(one).left
    assert not read(one).lost


def test_figures():
    assert milliseconds([]) is None
    assert milliseconds([0.001 * each for each in range(1, 102)]) == {"p50": 51.0, "p99": 100.0, "max": 101.0}
    looks = [{"second": float(second), "rss": 9.0 if second < 50 else second / 3600} for second in range(0, 100, 10)]
    assert slope(looks, "rss") == 1.0
    assert slope(looks[:4], "rss") is None
