"""Sequences that are decoded on several nodes, step by step and layer by layer: a discrete-event simulation (simpy).

A closed loop: as soon as a sequence has its answer, another one takes its place. Answers are of one length, and begin
evenly spread over the time that one takes, so a home reads prompts in every n-th step; all homes do in the same steps,
as one scheduler would have it. A few steps of both kinds are simulated, and count as often as they come.

replicas     each node has the whole model, and its share of the sequences.
one home     node 0 has all sequences, and all weights but routed experts, which are spread over the others.
all homes    each node has a share of the sequences, all weights but routed experts, and a share of these.

Where experts are apart, a layer's tokens go to the nodes that have their experts, in one message to each, and come back
as a row for each pair of a token and an expert. A node waits for the tokens of all homes, so that each expert is read
once for all of them; a home waits for the slowest node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import simpy

from lapinfer.errors import InputError
from lapinfer.scale.machines import Links, Machine, Run
from lapinfer.scale.network import OWN, Network, Shared
from lapinfer.scale.subject import ROUTE_BYTES, Subject

Arrangement = Literal["replicas", "one home", "all homes"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
STEPS = 8
"""That are simulated, …"""
PROMPTS_EVERY = 4
"""… of which every fourth one reads prompts, if there are any."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each sequence is: tokens of its prompt, read in one step, and of its answer. 0 of a prompt: answers alone,
    after a context that is not read."""

    prompt: int = 128
    answer: int = 128

    @property
    def context(self) -> int:
        """Positions of a whole sequence."""
        return self.prompt + self.answer


USUAL = Load()


@dataclass(frozen=True, slots=True)
class Setting:
    """shared: what processes of one machine share; None: each node is a machine of its own."""

    arrangement: Arrangement
    nodes: int
    batch: int
    network: Network
    load: Load = USUAL
    shared: Shared | None = None
    steps: int = STEPS

    @property
    def homes(self) -> int:
        """Nodes that have sequences, if these are enough."""
        return 1 if self.arrangement == "one home" else self.nodes

    @property
    def cycle(self) -> int:
        """Steps of a home, in one of which it reads prompts."""
        if not self.load.prompt:
            return 1
        return max(round(self.load.answer * min(self.homes, self.batch) / self.batch), 1)

    def reads(self, step: int) -> bool:
        """Whether prompts are read in a step that is simulated."""
        return self.load.prompt > 0 and (self.cycle == 1 or step % PROMPTS_EVERY == 0)


@dataclass(frozen=True, slots=True)
class Result:
    """tokens: of answers, that were simulated. latency: seconds between two tokens of an answer, the mean. waiting:
    share of the nodes' time in which they computed nothing. messages, bytes: of the network, of a token of an answer.
    expert_batch: tokens for which an expert is read once; 0 without experts."""

    tokens: int
    tokens_per_second: float
    latency: float
    waiting: float
    messages: float
    bytes: float
    expert_batch: float


@dataclass(slots=True)
class _Tally:
    """Sums over the steps of one kind: seconds by home, and of computing by node; messages, their bytes; pairs of a
    token and an expert, and experts read for them."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)
    messages: int = 0
    bytes: int = 0
    pairs: int = 0
    read: int = 0


class _Sequences:
    """Those of one home: how far each is, and where it reads on the tape."""

    def __init__(self, subject: Subject, setting: Setting, numbers: range, rng: np.random.Generator):
        self._subject, self._load, self.count = subject, setting.load, len(numbers)
        self._phase = np.arange(self.count) * setting.load.answer // self.count
        self._prompts = max(round(self.count * setting.cycle / setting.load.answer), 1)
        self._place = rng.integers(0, len(subject.tape.chosen), self.count)
        self._next = 0

    def step(self, reads: bool) -> tuple[int, int, np.ndarray]:
        """Tokens of the next step, earlier positions that they see, and the experts of each [tokens, layers, A]."""
        begins = np.zeros(self.count, bool)
        if reads:
            begins[(self._next + np.arange(min(self._prompts, self.count))) % self.count] = True
            self._next += self._prompts
        sizes = np.where(begins, self._load.prompt, 1)
        seen = np.where(begins, 0, self._load.prompt + self._phase)
        tokens = int(sizes.sum())
        within = np.arange(tokens) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chosen = self._subject.tape.read(np.repeat(self._place, sizes) + within)
        self._place = self._place + sizes
        self._phase = (self._phase + 1) % self._load.answer
        return tokens, int(seen.sum()), chosen


class _Simulation:
    """One run: what its nodes have in common. Each home is a process, and so is each layer of a node with experts."""

    def __init__(self, subject: Subject, setting: Setting, seed: int):
        self.subject, self.setting = subject, setting
        self.env = simpy.Environment()
        nodes, rng = range(setting.nodes), np.random.default_rng(seed)
        common = None if setting.shared is None else Machine(self.env, setting.shared)
        self.machines = [common or Machine(self.env, OWN) for _ in nodes]
        self.links = Links(setting.network, setting.nodes)
        self.holders = [n for n in nodes if setting.arrangement == "all homes" or n > 0]
        bounds = [setting.batch * i // setting.homes for i in range(setting.homes + 1)]
        self.sequences = {
            home: _Sequences(subject, setting, range(first, end), rng)
            for home, (first, end) in enumerate(pairwise(bounds))
            if end > first
        }
        self._tallies = {reads: _Tally() for reads in (False, True)}
        layers = range(subject.layers if self.holders else 0)
        self.places = [subject.tape.place(layer, len(self.holders)) for layer in layers]

    def run(self) -> Result:
        apart = self.setting.arrangement != "replicas"
        meetings: dict[tuple[int, int], _Meeting] = {}
        for home, own in self.sequences.items():
            self.env.process(self._home_apart(home, own, meetings) if apart else self._replica(home, own))
        self.env.run()
        return self._result()

    def _result(self) -> Result:
        """Of a whole cycle, in which steps of both kinds count as often as they come."""
        cycle, nodes = self.setting.cycle, range(self.setting.nodes)
        kinds = [(tally, self._times(reads)) for reads, tally in self._tallies.items() if tally.seconds]
        sequences = sum(own.count for own in self.sequences.values())
        simulated = {id(tally): len(next(iter(tally.seconds.values()))) for tally, _ in kinds}

        def mean(of: Callable[[_Tally], float]) -> float:
            """Of a step of the cycle."""
            return sum(times * of(tally) / simulated[id(tally)] for tally, times in kinds) / cycle

        seconds = {home: mean(lambda tally, home=home: sum(tally.seconds[home])) for home in self.sequences}
        longest = max(seconds.values())
        working = [mean(lambda t, n=n: t.busy.get(n, 0.0)) / seconds.get(n, longest) for n in nodes]
        read = mean(lambda tally: tally.read)
        return Result(
            tokens=sequences * sum(simulated.values()),
            tokens_per_second=sum(own.count / seconds[home] for home, own in self.sequences.items()),
            latency=sum(own.count * seconds[home] for home, own in self.sequences.items()) / sequences,
            waiting=max(1 - float(np.mean(working)), 0.0),
            messages=mean(lambda tally: tally.messages) / sequences,
            bytes=mean(lambda tally: tally.bytes) / sequences,
            expert_batch=mean(lambda tally: tally.pairs) / read if read else 0.0,
        )

    def _times(self, reads: bool) -> int:
        """How often a cycle has a step of this kind."""
        cycle = self.setting.cycle
        return int(self.setting.load.prompt > 0) if reads else cycle - int(self.setting.load.prompt > 0)

    def _replica(self, home: int, own: _Sequences) -> Run:
        experts = self.subject.tape.experts
        for step in range(self.setting.steps):
            began, tally = self.env.now, self._tallies[self.setting.reads(step)]
            tokens, positions, chosen = own.step(self.setting.reads(step))
            yield from self._rest(home, tokens, positions, 1, tally)
            for layer, count in enumerate(experts):
                yield from self.experts(home, _counts(chosen[:, layer], count), tally)
            yield from self._head(home, own.count, tally)
            tally.seconds.setdefault(home, []).append(self.env.now - began)

    def _home_apart(self, home: int, own: _Sequences, meetings: dict[tuple[int, int], _Meeting]) -> Run:
        layers, env = self.subject.layers, self.env
        for step in range(self.setting.steps):
            began, tally = env.now, self._tallies[self.setting.reads(step)]
            tokens, positions, chosen = own.step(self.setting.reads(step))
            for layer in range(layers):
                yield from self._rest(home, tokens, positions, layers, tally)
                if (step, layer) not in meetings:
                    meetings.pop((step - 1, layer), None)
                    meetings[step, layer] = _Meeting(self, layer, tally)
                pairs = int(np.count_nonzero(chosen[:, layer] >= 0))
                yield from self.work(home, self.subject.times.home.seconds(pairs), 0.0, tally)
                until = yield meetings[step, layer].join(home, chosen[:, layer])
                yield env.timeout(max(until - env.now, 0.0))
            yield from self._head(home, own.count, tally)
            tally.seconds.setdefault(home, []).append(env.now - began)

    def _rest(self, home: int, tokens: int, positions: int, parts: int, tally: _Tally) -> Run:
        """One of so many equal parts of what a home does besides experts and head."""
        times = self.subject.times
        yield from self.work(home, times.rest(tokens, positions) / parts, times.rest_waiting(tokens), tally)

    def _head(self, home: int, wanted: int, tally: _Tally) -> Run:
        times = self.subject.times
        yield from self.work(home, times.of_head(wanted), times.head_waiting(wanted), tally)

    def experts(self, node: int, counts: np.ndarray, tally: _Tally) -> Run:
        """A layer's experts on a node. counts: tokens of each."""
        times, distinct, pairs = self.subject.times, int(np.count_nonzero(counts)), int(counts.sum())
        tally.pairs += pairs
        tally.read += distinct
        yield from self.work(node, times.of_experts(distinct, pairs), times.experts_waiting(distinct, pairs), tally)

    def work(self, node: int, seconds: float, waiting: float, tally: _Tally) -> Run:
        began = self.env.now
        yield from self.machines[node].run(seconds, waiting)
        tally.busy[node] = tally.busy.get(node, 0.0) + self.env.now - began

    def send(self, source: int, target: int, nbytes: int, tally: _Tally) -> float:
        """When a message has arrived."""
        if source != target:
            tally.messages += 1
            tally.bytes += nbytes
        return self.links.send(source, target, nbytes, self.env.now)


class _Meeting:
    """A layer of a step: homes send tokens, nodes compute when they have those of all homes, homes get rows back."""

    def __init__(self, simulation: _Simulation, layer: int, tally: _Tally):
        self._of, self._tally = simulation, tally
        self._place = simulation.places[layer]
        self._counts: dict[int, np.ndarray] = {}
        self._back: dict[int, simpy.Event] = {}
        self._until: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self._arrived: dict[int, float] = {}

    def join(self, home: int, chosen: np.ndarray) -> simpy.Event:
        """Send the tokens of a home, whose experts are chosen [tokens, A]. The event's value is when all are back."""
        of, env = self._of, self._of.env
        token, rank = np.nonzero(chosen >= 0)
        expert = chosen[token, rank]
        there = np.zeros((len(chosen), len(of.holders)), bool)
        there[token, self._place[expert]] = True
        pairs = np.bincount(self._place[expert], minlength=len(of.holders))
        for i, tokens in enumerate(there.sum(axis=0).tolist()):
            if tokens:
                nbytes = tokens * of.subject.sent + int(pairs[i]) * ROUTE_BYTES
                arrived = of.send(home, of.holders[i], nbytes, self._tally)
                self._arrived[i] = max(self._arrived.get(i, 0.0), arrived)
        self._counts[home] = np.bincount(expert, minlength=len(self._place))
        self._back[home], self._until[home], self._left[home] = env.event(), env.now, int(np.count_nonzero(pairs))
        if len(self._counts) == len(of.sequences):
            for i in self._arrived:
                env.process(self._hold(i))
        return self._back[home]

    def _hold(self, i: int) -> Run:
        """What a node with experts does, when the tokens of all homes are there."""
        of, env = self._of, self._of.env
        yield env.timeout(max(self._arrived[i] - env.now, 0.0))
        counts = {home: own[self._place == i] for home, own in self._counts.items()}
        together = np.sum(list(counts.values()), axis=0)
        yield from of.work(of.holders[i], of.subject.times.node.seconds(int(together.sum())), 0.0, self._tally)
        yield from of.experts(of.holders[i], together, self._tally)
        for home, own in counts.items():
            if pairs := int(own.sum()):
                arrived = of.send(of.holders[i], home, pairs * of.subject.returned, self._tally)
                self._until[home] = max(self._until[home], arrived)
                self._left[home] -= 1
                if not self._left[home]:
                    self._back[home].succeed(self._until[home])


def _counts(chosen: np.ndarray, experts: int) -> np.ndarray:
    """Tokens of each expert."""
    return np.bincount(chosen[chosen >= 0], minlength=experts)


def simulate(subject: Subject, setting: Setting, seed: int = 0) -> Result:
    """Run a setting. The same seed gives the same result.

    InputError where experts would be apart and there are none, or no other node.
    """
    if setting.arrangement != "replicas" and not subject.layers:
        raise InputError(f"{subject.name}: a dense model has no experts that could be apart")
    if setting.arrangement == "one home" and setting.nodes < 2:
        raise InputError("one home: experts need a second node")
    return _Simulation(subject, setting, seed).run()
