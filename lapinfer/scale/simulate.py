"""Sequences that are decoded on several nodes, step by step and layer by layer: a discrete-event simulation (simpy).

A closed loop: as soon as a sequence has its answer, another one takes its place. Answers are of one length, and begin
evenly spread over the time that one takes, so what is simulated is the middle of a long run.

replicas     each node has the whole model, and its share of the sequences.
one home     node 0 has all sequences, and all weights but routed experts, which are spread over the others.
all homes    each node has a share of the sequences, all weights but routed experts, and a share of these.

Where experts are apart, a layer's tokens go to the nodes that have their experts, in one message to each, and come back
as a row for each pair of a token and an expert. A node waits for the tokens of all homes, so that each expert is read
once for all of them; a home waits for the slowest node.
"""

from __future__ import annotations

from dataclasses import dataclass
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
LEAST_STEPS, MOST_STEPS = 8, 512


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


@dataclass(frozen=True, slots=True)
class Setting:
    """shared: what processes of one machine share; None: each node is a machine of its own."""

    arrangement: Arrangement
    nodes: int
    batch: int
    network: Network
    load: Load = Load()
    shared: Shared | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """tokens: of answers; seconds: that were simulated. waiting: share of the nodes' time in which they computed
    nothing. latency: seconds between two tokens of an answer, the mean. messages, bytes: of the network, of a token of
    an answer. expert_batch: tokens for which an expert is read once; 0 without experts."""

    tokens: int
    seconds: float
    tokens_per_second: float
    latency: float
    waiting: float
    messages: float
    bytes: float
    expert_batch: float


class _Sequences:
    """Those of one home: how far each is, and where it reads on the tape."""

    def __init__(self, subject: Subject, load: Load, numbers: range, total: int, rng: np.random.Generator):
        self._subject, self._load, self.count = subject, load, len(numbers)
        self._phase = np.array(numbers) * load.answer // total
        self._place = rng.integers(0, len(subject.tape.chosen), self.count)

    def step(self) -> tuple[int, int, np.ndarray]:
        """Tokens of the next step, earlier positions that they see, and the experts of each [tokens, layers, A]."""
        begins = self._phase == 0 if self._load.prompt else np.zeros(self.count, bool)
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
        homes = 1 if setting.arrangement == "one home" else setting.nodes
        bounds = [setting.batch * i // homes for i in range(homes + 1)]
        self.sequences = {
            home: _Sequences(subject, setting.load, range(first, end), setting.batch, rng)
            for home, (first, end) in enumerate(pairwise(bounds))
            if end > first
        }
        self.steps = setting.steps or _steps(setting.load, setting.batch)
        self.gaps: list[float] = []
        self._ends: dict[int, float] = {}
        self._busy = [0.0] * setting.nodes
        self._pairs = self._read = 0

    def run(self) -> Result:
        apart = self.setting.arrangement != "replicas"
        meetings: dict[tuple[int, int], _Meeting] = {}
        for home, own in self.sequences.items():
            self.env.process(self._home_apart(home, own, meetings) if apart else self._replica(home, own))
        self.env.run()
        end = max(self._ends.values())
        tokens = sum(own.count for own in self.sequences.values()) * self.steps
        working = [busy / self._ends.get(node, end) for node, busy in enumerate(self._busy)]
        return Result(
            tokens=tokens,
            seconds=end,
            tokens_per_second=self._rate(),
            latency=float(np.mean(self.gaps)),
            waiting=max(1 - float(np.mean(working)), 0.0),
            messages=self.links.messages / tokens,
            bytes=self.links.bytes / tokens,
            expert_batch=self._pairs / self._read if self._read else 0.0,
        )

    def _rate(self) -> float:
        """Tokens per second of all homes. Those with as many sequences are alike in the long run: which of them had a
        prompt to read in the time that was simulated is chance."""
        times: dict[int, list[float]] = {}
        for home, own in self.sequences.items():
            times.setdefault(own.count, []).append(self._ends[home])
        return sum(count * self.steps * len(ends) / float(np.mean(ends)) for count, ends in times.items())

    def _replica(self, home: int, own: _Sequences) -> Run:
        times, experts = self.subject.times, self.subject.tape.experts
        for _ in range(self.steps):
            began = self.env.now
            tokens, positions, chosen = own.step()
            yield from self._work(home, times.rest(tokens, positions), times.rest_waiting(tokens))
            for layer, count in enumerate(experts):
                yield from self.experts(home, _counts(chosen[:, layer], count))
            self.gaps.append(self.env.now - began)
        self._ends[home] = self.env.now

    def _home_apart(self, home: int, own: _Sequences, meetings: dict[tuple[int, int], _Meeting]) -> Run:
        times, layers, env = self.subject.times, self.subject.layers, self.env
        for step in range(self.steps):
            began = env.now
            tokens, positions, chosen = own.step()
            rest, waiting = times.rest(tokens, positions), times.rest_waiting(tokens)
            for layer in range(layers):
                yield from self._work(home, rest / layers, waiting)
                if (step, layer) not in meetings:
                    meetings.pop((step - 1, layer), None)
                    meetings[step, layer] = _Meeting(self, layer)
                until = yield meetings[step, layer].join(home, chosen[:, layer])
                yield env.timeout(max(until - env.now, 0.0))
            self.gaps.append(env.now - began)
        self._ends[home] = env.now

    def experts(self, node: int, counts: np.ndarray) -> Run:
        """A layer's experts on a node. counts: tokens of each."""
        times, distinct, pairs = self.subject.times, int(np.count_nonzero(counts)), int(counts.sum())
        self._pairs += pairs
        self._read += distinct
        yield from self._work(node, times.of_experts(distinct, pairs), times.experts_waiting(distinct, pairs))

    def _work(self, node: int, seconds: float, waiting: float) -> Run:
        began = self.env.now
        yield from self.machines[node].run(seconds, waiting)
        self._busy[node] += self.env.now - began


class _Meeting:
    """A layer of a step: homes send tokens, nodes compute when they have those of all homes, homes get rows back."""

    def __init__(self, simulation: _Simulation, layer: int):
        self._of = simulation
        self._place = place(simulation.subject.tape.experts[layer], len(simulation.holders))
        self._counts: dict[int, np.ndarray] = {}
        self._back: dict[int, simpy.Event] = {}
        self._until: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self._arrived = [0.0] * len(simulation.holders)

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
                self._arrived[i] = max(self._arrived[i], of.links.send(home, of.holders[i], nbytes, env.now))
        self._counts[home] = np.bincount(expert, minlength=len(self._place))
        self._back[home], self._until[home], self._left[home] = env.event(), env.now, int(np.count_nonzero(pairs))
        if len(self._counts) == len(of.sequences):
            for i, arrived in enumerate(self._arrived):
                if arrived:
                    env.process(self._hold(i))
        return self._back[home]

    def _hold(self, i: int) -> Run:
        """What a node with experts does, when the tokens of all homes are there."""
        of, env = self._of, self._of.env
        yield env.timeout(max(self._arrived[i] - env.now, 0.0))
        counts = {home: own[self._place == i] for home, own in self._counts.items()}
        yield from of.experts(of.holders[i], np.sum(list(counts.values()), axis=0))
        for home, own in counts.items():
            if pairs := int(own.sum()):
                arrived = of.links.send(of.holders[i], home, pairs * of.subject.returned, env.now)
                self._until[home] = max(self._until[home], arrived)
                self._left[home] -= 1
                if not self._left[home]:
                    self._back[home].succeed(self._until[home])


def place(experts: int, holders: int) -> np.ndarray:
    """Which holder has each expert of a layer: neighbours are together."""
    return np.arange(experts) // -(-experts // holders)


def _counts(chosen: np.ndarray, experts: int) -> np.ndarray:
    """Tokens of each expert."""
    return np.bincount(chosen[chosen >= 0], minlength=experts)


def _steps(load: Load, sequences: int) -> int:
    """How many steps are simulated: so many that a prompt is read."""
    if not load.prompt:
        return LEAST_STEPS
    return max(LEAST_STEPS, min(-(-load.answer // sequences), MOST_STEPS))


def simulate(subject: Subject, setting: Setting, seed: int = 0) -> Result:
    """Run a setting. The same seed gives the same result.

    InputError where experts would be apart and there are none, or no other node.
    """
    if setting.arrangement != "replicas" and not subject.layers:
        raise InputError(f"{subject.name}: a dense model has no experts that could be apart")
    if setting.arrangement == "one home" and setting.nodes < 2:
        raise InputError("one home: experts need a second node")
    return _Simulation(subject, setting, seed).run()
