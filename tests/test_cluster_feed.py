"""Lines on their way to engines of a cluster, as far as Ray is not needed: who has them, and what comes back."""

import asyncio
import queue

import pytest

from lapinfer.batch.lines import Line
from lapinfer.cluster.feed import Feed, Giving, unpacked
from lapinfer.errors import InputError


def lines(count):
    return [Line(number, b"%d" % number) for number in range(1, count + 1)]


def test_lines_are_given_out_in_groups_and_taken_back_once():
    groups = queue.SimpleQueue()
    giving = Giving(lines(100), groups.put, most=20, engines=1, group=8)
    numbers, sizes = [], []
    while (group := groups.get(timeout=10)) is not None:
        sizes.append(len(unpacked(group)))
        for line in unpacked(group):
            numbers.append(line.number)
            assert giving.took_back(line.number)
            assert not giving.took_back(line.number)
    assert (numbers, max(sizes) <= 8) == ([*range(1, 101)], True)
    assert (giving.lost, [*giving.close()]) == ([], [])


def test_no_more_lines_are_out_than_may_be_and_those_are_known():
    groups = queue.SimpleQueue()
    giving = Giving(lines(100), groups.put, most=5, engines=1, group=8)
    out = [unpacked(groups.get(timeout=10))[0].number for _ in range(5)]
    assert giving.took_back(3)
    out += [line.number for line in unpacked(groups.get(timeout=10))]
    assert out == [1, 2, 3, 4, 5, 6]
    assert sorted(line.number for line in giving.close()) == [number for number in range(1, 101) if number != 3]


def test_an_error_of_the_lines_is_kept():
    def failing():
        yield from lines(2)
        raise InputError("in.jsonl: cannot be read")

    groups = queue.SimpleQueue()
    giving = Giving(failing(), groups.put, most=5, engines=1, group=1)
    assert [len(unpacked(groups.get(timeout=10) or b"")) for _ in range(3)] == [1, 1, 0]
    assert [*giving.close()] == lines(2)
    assert str(giving.error) == "in.jsonl: cannot be read"


def test_a_reader_that_starts_again_gets_what_is_not_done():
    async def told():
        feed = Feed()
        for group in (b"a", b"b"):
            await feed.put(group)
        waiting = asyncio.create_task(feed.get(2))
        await feed.done(0)
        await feed.put(None)
        return [await feed.get(index) for index in range(2)], await waiting

    assert asyncio.run(told()) == ([b"", b"b"], None)


@pytest.mark.parametrize("arguments", [["--workers", "2"], ["--worker-threads", "2"]])
def test_options_of_clusters_want_one(arguments):
    from typer.testing import CliRunner

    from lapinfer.cli import app

    result = CliRunner().invoke(app, ["batch", __file__, "-o", "-", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"error: {arguments[0]} is for clusters: add --ray\n")
