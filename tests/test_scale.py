"""`lapinfer scale`: what a simulation of many machines must give where the answer is known without one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import made_study, made_subject
from typer.testing import CliRunner

from lapinfer.cli import app
from lapinfer.errors import InputError
from lapinfer.model import Model
from lapinfer.report import roofline
from lapinfer.report.costs import Costs
from lapinfer.report.outputs import is_report
from lapinfer.report.random_weights import random_weights, shape_formats
from lapinfer.report.roofline import Roofline
from lapinfer.report.shapes import shape_spec
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.placement import placed
from lapinfer.runtime.predict import expected_experts
from lapinfer.scale import asking, gather, measure
from lapinfer.scale.data import subjects_of, to_json
from lapinfer.scale.foresee import PROMPT, SIZES, Speeds, foreseen_times
from lapinfer.scale.machines import Machine
from lapinfer.scale.measure import CTX, measured_times, tape_of
from lapinfer.scale.network import Network, Shared, network
from lapinfer.scale.simulate import ARRANGEMENTS, Arrangement, Load, Setting, simulate
from lapinfer.scale.study import Study, crossings, memory_of, rows
from lapinfer.scale.subject import Subject
from lapinfer.scale.tables import text
from lapinfer.scale.tape import Tape, drawn
from lapinfer.scale.times import Asking, Rates, Step, Times, fit
from lapinfer.scale.twins import twin_formats, twins
from lapinfer.scale.words import found
from lapinfer.spec import AttentionSpec, FeedForwardSpec, RouterSpec, TreeSpec
from lapinfer.tensors import active_parameters, parameters, tensors

LAYERS, EXPERTS, TOP_K = 3, 8, 2
FREE = Network("free", 0.0, 1e30, 0.0)
SLOW = Network("slow", 2e-3, 1e8, 1e-4)
DECODE = Load(0, 16)
FAST = Rates(0.0, 0.0, 0.0)
NO_HEAD = (Step(1, 0.0, 0.0),)
TIMES = Times(
    steps=(Step(1, 0.008, 0.9), Step(4, 0.012, 0.8), Step(16, 0.034, 0.4)),
    head=(Step(1, 0.002, 1.0), Step(16, 0.004, 1.0)),
    position=1e-7,
    experts=Rates(1e-4, 1e-10, 1e-10),
    expert_bytes=1_000_000,
    expert_macs=500_000,
)


def tape(chosen: np.ndarray, experts: int = EXPERTS) -> Tape:
    return Tape(chosen.astype(np.int16), (experts,) * chosen.shape[1], "made")


def chance(seed: int = 0) -> Tape:
    rng = np.random.default_rng(seed)
    return tape(rng.permuted(np.tile(np.arange(EXPERTS), (64, LAYERS, 1)), axis=2)[..., :TOP_K])


def subject(of: Tape | None = None, times: Times = TIMES) -> Subject:
    of = chance() if of is None else of
    return Subject("a model", "moe", 100, 50, 60_000_000, 1_000_000, 1000, 4000, times, of, "made")


def rest(tokens: int) -> float:
    """Seconds of a step of decoding, without experts."""
    return TIMES.rest(tokens) + TIMES.of_head(tokens)


def run(arrangement: Arrangement, nodes: int, batch: int, net: Network = FREE, load: Load = DECODE, **more):
    own = more.pop("of", subject())
    return simulate(own, Setting(arrangement, nodes, batch, net, load, **more))


def test_one_node_takes_the_time_of_the_steps_that_were_measured():
    of = subject(tape(np.tile([0, 1], (5, LAYERS, 1))), replace(TIMES, position=0.0))
    step = rest(4) + LAYERS * TIMES.of_experts(2, 8)
    for arrangement in ("replicas", "all homes"):
        found = run(arrangement, 1, 4, SLOW, of=of)
        assert found.latency == pytest.approx(step)
        assert found.tokens_per_second == pytest.approx(4 / step)
        assert found.messages == found.bytes == 0
        assert found.waiting == pytest.approx(0, abs=1e-9)


def test_two_replicas_are_twice_as_fast_as_one_with_half_the_sequences():
    of = subject(tape(np.tile([0, 1], (5, LAYERS, 1))))
    one, two = run("replicas", 1, 4, of=of), run("replicas", 2, 8, of=of)
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second)
    assert two.latency == pytest.approx(one.latency)


def test_one_expert_node_adds_its_messages_to_the_time_of_one_machine():
    """No overlap with one home and one holder: each layer's time is a sum."""
    of = subject(tape(np.tile([0, 1], (5, LAYERS, 1))), replace(TIMES, position=0.0))
    out, back = 4 * 1000 + 8 * 16, 8 * 4000
    wire = 2 * SLOW.latency + 4 * SLOW.call + (out + back) / SLOW.bandwidth
    found = run("one home", 2, 4, SLOW, of=of)
    assert found.latency == pytest.approx(rest(4) + LAYERS * (TIMES.of_experts(2, 8) + wire))
    assert (found.messages, found.bytes) == (2 * LAYERS / 4, LAYERS * (out + back) / 4)


def test_asking_takes_its_time_on_both_sides():
    times = replace(TIMES, position=0.0, home=Asking(1e-4, 1e-6), node=Asking(2e-4, 3e-6))
    of = subject(tape(np.tile([0, 1], (5, LAYERS, 1))), times)
    expected = rest(4) + LAYERS * (TIMES.of_experts(2, 8) + 1e-4 + 2e-4 + 8 * 4e-6)
    assert run("one home", 2, 4, of=of).latency == pytest.approx(expected)


def test_a_home_waits_for_the_slowest_node():
    """Tokens choose an expert of each of two holders, one of which gets them all, the other none: a barrier."""
    even = subject(tape(np.array([[[0, 1]] * LAYERS, [[2, 3]] * LAYERS])), replace(TIMES, position=0.0))
    skewed = subject(tape(np.array([[[0, 2]] * LAYERS, [[4, 6]] * LAYERS])), replace(TIMES, position=0.0))
    faster, slower = (run("one home", 3, 8, of=of, steps=8) for of in (even, skewed))
    places = np.random.default_rng(0).integers(0, 2, 8)  # the sequences' places on the tape
    distinct = len(set(places.tolist()))
    assert faster.latency == pytest.approx(rest(8) + LAYERS * TIMES.of_experts(distinct, 8))
    assert slower.latency == pytest.approx(rest(8) + LAYERS * TIMES.of_experts(2 * distinct, 16))


def test_experts_apart_read_each_expert_once_for_all_homes():
    of = subject(tape(np.tile([0, 4], (5, LAYERS, 1))))
    assert run("replicas", 2, 16, of=of).expert_batch == 8
    assert run("all homes", 2, 16, of=of).expert_batch == 16


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_tokens_are_neither_lost_nor_made(arrangement: Arrangement):
    for batch in (1, 3, 7, 16):
        found = run(arrangement, 3, batch, SLOW, steps=5)
        assert found.tokens == 5 * batch
        assert found.tokens_per_second > 0
        assert 0 <= found.waiting <= 1


@settings(max_examples=25, deadline=None)
@given(
    arrangement=st.sampled_from(ARRANGEMENTS[1:]),
    nodes=st.integers(2, 5),
    batch=st.integers(1, 12),
    latency=st.floats(0, 0.01),
    more=st.floats(1e-6, 0.01),
)
def test_a_slower_network_is_never_faster(arrangement, nodes, batch, latency, more):
    net = Network("any", latency, 1e8, 1e-5)
    usual = run(arrangement, nodes, batch, net, steps=3)
    later = run(arrangement, nodes, batch, replace(net, latency=latency + more), steps=3)
    narrower = run(arrangement, nodes, batch, replace(net, bandwidth=5e7), steps=3)
    assert later.latency > usual.latency
    assert narrower.latency >= usual.latency * (1 - 1e-9)
    assert later.bytes == usual.bytes


def test_a_seed_is_a_result():
    setting = Setting("all homes", 3, 8, SLOW, Load(8, 16))
    assert simulate(subject(), setting, 1) == simulate(subject(), setting, 1)
    assert simulate(subject(), setting, 1) != simulate(subject(), setting, 2)


def test_prompts_are_read_as_often_as_answers_end():
    """With a line through 0 for steps, a sequence's share of time is that of its tokens, whatever the batch."""
    times = replace(TIMES, steps=(Step(1, 0.01, 0), Step(2, 0.02, 0)), head=NO_HEAD, position=0.0, experts=FAST)
    for batch in (1, 2, 8):
        found = run("replicas", 1, batch, load=Load(16, 16), of=subject(times=times), steps=32)
        assert found.tokens_per_second == pytest.approx(16 / (0.01 * (16 + 15)))


def test_processes_of_one_machine_share_its_memory():
    times = replace(TIMES, steps=(Step(1, 0.01, 1.0),), head=NO_HEAD, position=0.0, experts=FAST)
    alone = run("replicas", 1, 1, of=subject(times=times)).tokens_per_second
    both = run("replicas", 2, 2, of=subject(times=times), shared=Shared(2.0, (1.0, 1.25))).tokens_per_second
    assert both == pytest.approx(1.25 * alone)
    computing = replace(times, steps=(Step(1, 0.01, 0.0),))
    cores = run("replicas", 4, 4, of=subject(times=computing), shared=Shared(2.0))
    assert cores.tokens_per_second == pytest.approx(2 * alone)


def test_work_that_begins_later_shares_from_then_on():
    env = simpy.Environment()
    machine, ends = Machine(env, Shared(1.0)), []

    def work(start: float, seconds: float):
        yield env.timeout(start)
        yield from machine.run(seconds)
        ends.append(env.now)

    env.process(work(0, 3))
    env.process(work(1, 1))
    env.run()
    assert ends == pytest.approx([3, 4])  # 1 s alone, then half as fast: 1 s takes 2; what is left has all again


@settings(max_examples=30, deadline=None)
@given(begin=st.floats(0, 1e-3), rate=st.floats(1e9, 1e11), speed=st.floats(1e9, 1e12))
def test_a_fit_finds_the_rates_that_made_the_times(begin, rate, speed):
    works = [(5e6 * d, 1e6 * p) for d, p in ((2, 2), (4, 8), (7, 32), (8, 128), (8, 512))]
    made = Rates(begin, 1 / rate, 1 / speed)
    found = fit(works, [made.seconds(*work) for work in works])
    for work in works:
        assert found.seconds(*work) == pytest.approx(made.seconds(*work), rel=1e-6)
    assert found.mac == pytest.approx(made.mac, rel=1e-3, abs=1e-16)


def test_no_rate_is_below_zero():
    found = fit([(1e6, 1e6), (2e6, 8e6), (3e6, 64e6)], [3e-4, 2e-4, 4e-4])
    assert min(found.begin, found.byte, found.mac) >= 0


def test_steps_between_those_measured_lie_on_lines():
    assert TIMES.rest(1) == 0.008
    assert TIMES.rest(2) == pytest.approx(0.008 + 0.004 / 3)
    assert TIMES.rest(28) == pytest.approx(0.056)
    assert TIMES.rest(1, 100) == pytest.approx(0.008 + 1e-5)
    assert TIMES.of_head(6) == pytest.approx(0.002 + 0.002 / 3)


def test_experts_are_spread_as_the_engine_spreads_them():
    feed_forwards = [FeedForwardSpec(8, "silu", router=RouterSpec(EXPERTS, TOP_K))] * LAYERS
    expected = placed(feed_forwards, 3).node_of
    assert [chance().place(layer, 3).tolist() for layer in range(LAYERS)] == [node.tolist() for node in expected]
    assert subject().apart_bytes(2, 4, home=True, holds=True) < subject().replica_bytes(2)


def test_drawn_experts_are_different_and_as_skewed_as_asked():
    spec = shape_spec("100m", "moe")
    even, skewed = drawn(spec), drawn(spec, 1.0)
    assert even.experts == (16,) * 12
    assert all(len(set(row.tolist())) == 2 for row in even.chosen[:50, 3])
    assert even.skew < 1.5 < 3 < skewed.skew
    assert (drawn(spec, 1.0).chosen == skewed.chosen).all()


def test_trees_give_a_leaf_or_the_neurons_on_the_way():
    spec = shape_spec("100m", "fff")
    layer = spec.layers[0]

    def of(tree: TreeSpec) -> Tape:
        ff = FeedForwardSpec(8, "relu", gated=False, router=tree)
        return drawn(replace(spec, layers=(replace(layer, feed_forward=ff),)))

    leaves = of(TreeSpec(2, trees=2)).chosen[:, 0]
    assert set(leaves[:, 0].tolist()) == {0, 1, 2, 3}
    assert set(leaves[:, 1].tolist()) == {4, 5, 6, 7}
    neurons = of(TreeSpec(2, neurons=True)).chosen[:, 0]
    assert set(neurons[:, 0].tolist()) == {0}
    assert set(neurons[:, 2].tolist()) == {3, 4, 5, 6}
    assert ((neurons[:, 1] - 1) // 2 == 0).all()
    assert ((neurons[:, 2] - 1) // 2 == neurons[:, 1]).all()


def test_networks_that_there_are_not_are_refused():
    with pytest.raises(InputError, match="--network token-ring: no such network; expected 10gbe"):
        network("token-ring")
    with pytest.raises(InputError, match="bandwidth of a network: expected a number above 0, got 0"):
        network("10gbe", bandwidth=0)
    assert network("10gbe", latency=1.0) == replace(network("10gbe"), latency=1.0)


def test_what_cannot_be_apart_is_refused():
    dense = replace(subject(), tape=Tape(np.zeros((4, 0, 0), np.int16), (), "made"))
    with pytest.raises(InputError, match="a model: a dense model has no experts"):
        run("all homes", 2, 1, of=dense)
    with pytest.raises(InputError, match="experts need a second node"):
        run("one home", 1, 1)
    assert run("replicas", 2, 4, of=dense).expert_batch == 0


# Models, files, the command


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights, with a shared expert, whose steps are measured."""
    spec = shape_spec("100m", "moe")
    layer = spec.layers[0]
    ff = FeedForwardSpec(32, "silu", router=RouterSpec(4, 2), shared=1)
    attention = AttentionSpec(2, 1, 16, 16, 0.25)
    layers = (replace(layer, mixer=attention, feed_forward=ff),) * 2
    spec = replace(spec, vocab=96, hidden=32, layers=layers, context=512)
    formats = shape_formats(spec, "q4")
    return Model(spec, random_weights(tensors(spec).values(), formats), Limits(CTX, 64, threads=1), name="tiny")


def test_steps_of_a_model_are_measured(model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "STEPS", 2)
    ids = np.random.default_rng(0).integers(0, 96, 512)
    times = measured_times(model, ids, 1e10)
    assert [step.tokens for step in times.steps] == [*SIZES, PROMPT]
    assert [step.tokens for step in times.head] == [*SIZES]
    assert all(step.seconds > 0 for step in (*times.steps, *times.head))
    assert (times.expert_bytes, times.expert_macs) == Costs.of(model).expert(0)
    recorded = tape_of(model, ids)
    assert recorded.chosen.shape == (512, 2, 3)
    assert recorded.experts == (5, 5)
    assert (recorded.chosen[..., 2] == 4).all()
    assert recorded.chosen[..., :2].max() == 3


def test_asking_a_node_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asking, "ROUNDS", 1)
    home, node = asking.measured_asking(1)
    assert node.begin > 0
    assert min(home.begin, home.pair, node.pair) >= 0


@pytest.mark.parametrize("tokens", [1, 4, PROMPT])
def test_foreseen_steps_have_the_bytes_that_are_predicted(model: Model, tokens: int):
    """At 1 byte per second, without arithmetic, seconds are bytes."""
    costs = Costs.of(model)
    times = foreseen_times(costs, Speeds(1.0, 1e30))
    slots = np.arange(tokens)
    expected = costs.touched(np.zeros(tokens, np.int64), tokens, slots)
    rest = sum(expected.values()) - expected["experts"] - expected["head"] - expected["kv"]
    assert times.rest(tokens) == pytest.approx(rest, abs=0.01)
    assert times.of_head(tokens) == pytest.approx(expected["head"], abs=0.01)
    distinct = expected_experts(costs.spec.layers[0], tokens)
    assert 2 * times.of_experts(distinct, 3 * tokens) == pytest.approx(expected["experts"], abs=0.01)


def test_twins_have_the_parameters_that_they_are_compared_by():
    spec = shape_spec("1b", "moe")
    found = twins(spec)
    total, active = parameters(spec), active_parameters(spec)
    assert parameters(found["dense"]) == pytest.approx(total, rel=0.01)
    assert parameters(found["dense-active"]) == pytest.approx(active, rel=0.01)
    assert active_parameters(found["fff"]) == pytest.approx(active, rel=0.01)
    for twin in found.values():
        formats = twin_formats(twin, shape_formats(spec, "q4"))
        assert set(formats) == {t.name for t in tensors(twin).values() if t.is_matrix}
    assert twins(found["dense"]) == {}


def test_a_study_goes_into_a_file_and_back(tmp_path: Path):
    study = made_study("dense", "moe")
    (tmp_path / "s.json").write_text(to_json(study))
    found = subjects_of(tmp_path / "s.json")
    assert rows(found, study.options) == study.rows
    assert is_report(tmp_path / "s.json")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_files_are_hostile(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """A value anywhere replaced by another: an error in one line, or subjects that can be simulated."""
    value = json.loads(_WRITTEN)
    place, wrong = value["subjects"], st.sampled_from([None, -1, 1.5, 1e300, "x", [], {}, True, 1 << 70, [1], [[]]])
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(wrong)
            break
        place = place[key]
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_text(json.dumps(value))
    said = ""
    try:
        for each in subjects_of(path):
            simulate(each, Setting("replicas", 1, 2, FREE, Load(4, 4), steps=1))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or str(path) in said


_WRITTEN = to_json(made_study("moe", nodes=(1,), batches=(1,)))


def test_words_say_where_experts_apart_begin_to_pay():
    study = made_study("dense", "dense-active", "moe", nodes=(1, 4), batches=(1, 64))
    lines = found(study)
    assert lines[0].startswith(
        "On 4 nodes, against 100m-dense, which has as many parameters, a token of 100m-moe costs "
    )
    crossing = crossings(study)[0]
    assert (crossing.model, crossing.nodes) == ("100m-moe", 4)
    assert any("experts apart on 4 nodes" in line for line in lines)
    enough = memory_of(made_subject("moe"), "all homes", 4, 16)
    small = made_study("moe", nodes=(4,), batches=(16,), node_memory=enough)
    assert [row.fits for row in small.rows if row.arrangement == "replicas"] == [False]
    assert crossings(small)[0].best is None
    assert any("the only way, since no replica fits" in line for line in found(small))
    assert "does not fit" in text(small)


def test_where_experts_pay_from_is_the_first_number_without_a_worse_one_after_it():
    study = made_study("moe", nodes=(2,), batches=(1, 2, 4))

    def with_speeds(*ratios: float) -> Study:
        of = dict(zip((1, 2, 4), ratios, strict=True))
        speeds = {"replicas": lambda b: 1.0, "one home": lambda b: 0.1, "all homes": lambda b: of[b]}
        own = [replace(r, tokens_per_second=speeds[r.arrangement](r.batch)) for r in study.rows]
        return replace(study, rows=tuple(own))

    assert crossings(with_speeds(0.5, 1.5, 2.0))[0].since == 2
    assert crossings(with_speeds(1.5, 0.5, 2.0))[0].since == 4
    assert crossings(with_speeds(1.5, 2.0, 0.5))[0].since is None
    assert crossings(with_speeds(1.5, 2.0, 0.5))[0].best == 2.0


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["scale", *map(str, arguments)])


def test_the_command_simulates_models_that_are_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(roofline, "measure", lambda threads: Roofline(threads, {threads: 2e10}, {"int8": 1e11}))
    monkeypatch.setattr(roofline, "weights_bandwidth", lambda format, threads: 2e10)
    monkeypatch.setattr(roofline, "peak", lambda format, threads: 1e11)
    monkeypatch.setattr(gather, "measured_asking", lambda threads: (Asking(1e-5, 1e-7), Asking(1e-4, 1e-6)))
    page, data = tmp_path / "s.html", tmp_path / "s.json"
    chosen = ("--nodes", 2, "--batch", "1,8", "--answer", 8, "--prompt", 8, "--node-memory", 12)
    result = invoke("Qwen/Qwen3-30B-A3B", *chosen, "--no-twins", "-o", page, "--json", data)
    assert result.exit_code == 0, result.output
    assert "all homes" in result.stdout
    assert "does not fit" in result.stdout
    assert "the only way" in page.read_text()
    again = invoke("--from", data, *chosen)
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--network", "token-ring"), 2, "--network: expected one of 10gbe"),
        (("nowhere",), 1, "nowhere"),
        (("--batch", "0,1"), 1, "--batch: expected numbers from 1 to 4,096"),
        (("--batch", "many"), 2, "expected numbers from 0"),
        (("--nodes", "65"), 1, "--nodes: expected numbers from 1 to 64"),
        (("--out", "page.txt"), 1, "page.txt: expected a name that ends with .html"),
        (("--from", "none.json"), 1, "none.json: cannot be read"),
        (("--from", "none.json", "austen-moe"), 2, "leave out names"),
        (("--bandwidth", "0"), 1, "bandwidth of a network: expected a number above 0"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments, code: int, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roofline, "measure", lambda threads: Roofline(threads, {threads: 2e10}, {"int8": 1e11}))
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split())


def test_without_simpy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    result = invoke()
    assert result.exit_code == 1
    assert 'lapinfer scale needs simpy: pip install "lapinfer[cluster]"' in " ".join(result.stderr.split())
