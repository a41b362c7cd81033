"""What a cluster needs and Ray does not: where requests go, how CPUs are shared, packed models on nodes, options."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.cluster import copies
from lapinfer.cluster.prefixes import BLOCK, Work, blocks
from lapinfer.cluster.shares import Range, shares
from lapinfer.errors import CheckpointError, DoesNotFitError, InputError
from lapinfer.options import LoadOptions
from lapinfer.packing.reader import read_packed

SYSTEM = "You are a helpful assistant who answers in rhymes. " * 40


def chat(text, system=SYSTEM, **more):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages} | more).encode()


def common(first, second):
    return sum(a == b for a, b in zip(first, second, strict=False))


def test_blocks_of_prompts_agree_as_far_as_prompts_do():
    first, second = blocks(chat("What is a fox?" * 50)), blocks(chat("Tell me of foxes." * 50, temperature=0.3))
    assert len(SYSTEM) // BLOCK <= common(first, second) < min(len(first), len(second))
    assert common(first, blocks(chat("What is a fox?" * 50, model="other"))) == 0
    assert blocks(chat("x" * 10**6))[:5] == blocks(chat("x" * 10**6))[:5]


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"{}", b'"x"', b"\xff", b'{"prompt": "short"}', b"[" * 100_000])
def test_what_has_no_beginning_has_no_blocks(body):
    assert blocks(body) == ()


@pytest.mark.parametrize("field", ["prompt", "input", "messages", "instructions", "system"])
def test_prompts_of_all_protocols_have_blocks(field):
    assert blocks(json.dumps({field: "word " * 100}).encode())


def test_requests_that_begin_alike_go_where_that_was_read():
    work = Work(slots=4)
    first, other = blocks(chat("one")), blocks(chat("two", system="Be brief and say nothing of rhymes. " * 30))
    begun = work.best(["a", "b"], first)[0]
    work.begun("1", begun, first)
    assert work.best(["a", "b"], first)[0] == begun  # also while it is read
    assert work.best(["a", "b"], other)[0] != begun
    work.ended("1")
    assert work.best(["a", "b"], first)[0] == begun


def test_others_take_what_the_replica_that_knows_it_has_no_slot_for():
    work, prompt = Work(slots=2), blocks(chat("one"))
    chosen = []
    for request in range(4):
        chosen.append(work.best(["a", "b"], prompt)[0])
        work.begun(str(request), chosen[-1], prompt)
    assert sorted(chosen) == ["a", "a", "b", "b"]


def test_without_a_beginning_replicas_take_turns():
    work = Work(slots=4)
    chosen = []
    for request in range(6):
        chosen.append(work.best(["a", "b", "c"], ())[0])
        work.begun(str(request), chosen[-1], ())
        work.ended(str(request))
    assert chosen == ["a", "b", "c"] * 2


def test_what_a_replica_that_is_gone_has_read_is_forgotten():
    work, prompt = Work(slots=4), blocks(chat("one"))
    work.begun("1", "a", prompt)
    work.only(["b"])
    assert not any(work._read.values())


def test_beginnings_that_were_not_asked_for_longest_go_first():
    work = Work(slots=4, kept=20)
    first, other = blocks(chat("one")), blocks(chat("two", system="Be brief and say nothing of rhymes. " * 20))
    work.begun("1", "a", first)
    work.begun("2", "b", other)
    assert len(work._read) == 20
    assert work._known(other) == {"b": len(other)}
    assert 0 < work._known(first)["a"] < len(first)


@pytest.mark.parametrize(
    ("cpus", "engines", "threads", "expected"),
    [
        ((8,), None, None, (1, 1, 8)),
        ((8, 8), None, None, (2, 2, 8)),
        ((64, 8), None, None, (9, 9, 8)),
        ((8,), (2, 2), None, (2, 2, 4)),
        ((8, 8), (3, 3), None, (3, 3, 4)),
        ((8,), None, 2, (4, 4, 2)),
        ((8,), (1, 9), 2, (1, 4, 2)),
        ((2, 1), (2, 2), None, (2, 2, 1)),
    ],
)
def test_shares_of_a_clusters_cpus(cpus, engines, threads, expected):
    count, threads = shares(cpus, engines and Range(*engines), threads, "--workers")
    assert (count.least, count.most, threads) == expected


def test_more_engines_than_cpus():
    with pytest.raises(DoesNotFitError, match="--workers: 3 engines of 2 threads found no room on nodes with 4 CPUs"):
        shares((4,), Range(3, 3), 2, "--workers")


@pytest.mark.parametrize("text", ["0", "-1", "x", "2:1", "1:2:3", ""])
def test_wrong_numbers_of_engines(text):
    with pytest.raises(InputError, match="--workers: expected a whole number from 1, or MIN:MAX"):
        Range.parsed("--workers", text)


class Holding:
    """An actor's handle, as far as copies.py asks."""

    def __init__(self, weights, changed=None):
        self.calls, self._holder, self._changed = 0, copies.Holder(str(weights)), changed
        self.piece = self

    def remote(self, start, stop):
        self.calls += 1
        piece = self._holder.piece(start, stop)
        return piece if self._changed is None else self._changed(piece.copy())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """(an offer of a model that was packed on another node, its weights); this node's home is empty."""
    from types import SimpleNamespace

    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "theirs"))
    folder = Path(__file__).parent.parent / "weights" / "austen-dense-active"
    offer, weights = copies.offered(str(folder), LoadOptions(quant="q8"))
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "ours"))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda piece: piece))
    monkeypatch.setattr(copies, "PIECE", 300_001)
    return offer, weights


def test_a_node_takes_a_model_once(elsewhere):
    from dataclasses import replace

    offer, weights = elsewhere
    holder = Holding(weights)
    offer = replace(offer, holder=holder)
    here = copies.held(offer, LoadOptions(quant="q8"))
    assert Path(here.path, "model.safetensors").read_bytes() == weights.read_bytes()
    assert holder.calls == -(-offer.bytes // copies.PIECE)
    copies.held(offer, LoadOptions(quant="q8"))
    assert holder.calls == -(-offer.bytes // copies.PIECE)
    assert read_packed(here.path)[1].content == offer.content
    assert here.options.quant == "auto"


def test_what_arrives_damaged_is_not_kept(elsewhere):
    from dataclasses import replace

    def changed(piece):
        piece[-1] ^= 1
        return piece

    offer, weights = elsewhere
    with pytest.raises(CheckpointError, match="differs from what was written"):
        copies.held(replace(offer, holder=Holding(weights, changed)), LoadOptions(quant="q8"))
    here = copies.held(replace(offer, holder=Holding(weights)), LoadOptions(quant="q8"))
    assert Path(here.path, "model.safetensors").read_bytes() == weights.read_bytes()


def test_a_node_that_has_the_same_takes_nothing(elsewhere, monkeypatch):
    offer, weights = elsewhere
    monkeypatch.setenv("LAPINFER_HOME", str(weights.parent.parent.parent))
    assert copies.held(offer, LoadOptions(quant="q8")).path == offer.name


def test_a_node_that_nobody_gives_it_to(elsewhere):
    with pytest.raises(InputError, match="this node does not have it, and nobody offers it"):
        copies.held(elsewhere[0], LoadOptions(quant="q8"))


@pytest.mark.parametrize("command", [["serve", "austen-fff"], ["batch", __file__, "-o", "-"]])
def test_without_the_extra_one_line_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, [*command, "--ray"])
    assert (result.exit_code, result.stderr) == (1, 'error: --ray needs ray: pip install "lapinfer[cluster]"\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas is for clusters: add --ray"),
        (["--ray", "--replicas", "0"], "--replicas: expected a whole number from 1, or MIN:MAX, got '0'"),
    ],
)
def test_wrong_options_are_wrong_usage(arguments, message):
    result = CliRunner().invoke(app, ["serve", "austen-fff", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "address", "models"),
    [
        (["--ray"], "local", None),
        (["--ray", "austen-fff"], "local", ["austen-fff"]),
        (["austen-fff", "--ray", "--replicas", "1"], "local", ["austen-fff"]),
        (["--ray", "auto", "austen-fff"], "auto", ["austen-fff"]),
        (["--ray", "10.0.0.1:6379"], "10.0.0.1:6379", None),
        (["--ray=head:1", "x"], "head:1", ["x"]),
    ],
)
def test_ray_may_stand_alone(arguments, address, models, monkeypatch):
    import lapinfer.cli.serve as command

    seen = []
    monkeypatch.setattr(command, "_serve_on_cluster", lambda address, models, *rest: seen.append((address, models)))
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert (result.exit_code, seen) == (0, [(address, models)]), result.stderr
