"""Models on more and more nodes, for more and more sequences: what all arrangements give, and where they cross."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lapinfer.errors import InputError
from lapinfer.progress import Count, Progress, silent
from lapinfer.report.measured import Kind
from lapinfer.scale.network import Network, Shared
from lapinfer.scale.simulate import ARRANGEMENTS, USUAL, Arrangement, Load, Setting, simulate
from lapinfer.scale.subject import Subject

HOUR, MILLION = 3600.0, 1e6
MOST_NODES, MOST_BATCH = 64, 4096
"""A simulation of more takes minutes."""


@dataclass(frozen=True, slots=True)
class Options:
    """nodes, batches: to try. price: of a node for an hour, in whatever currency. node_memory: bytes; None: enough.
    shared: of processes of one machine; None: nodes of their own."""

    nodes: tuple[int, ...]
    batches: tuple[int, ...]
    network: Network
    shared: Shared | None = None
    load: Load = USUAL
    price: float = 1.0
    node_memory: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, most in (("--nodes", self.nodes, MOST_NODES), ("--batch", self.batches, MOST_BATCH)):
            if not values or not all(1 <= value <= most for value in values):
                raise InputError(f"{name}: expected numbers from 1 to {most:,}, got {', '.join(map(str, values))}")
        if self.load.prompt < 0 or self.load.answer < 1:
            raise InputError("--prompt, --answer: expected at least 0 and 1 tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """A model in one arrangement. cost: of a million tokens of answers; latency: seconds between two of one answer;
    waiting: share of the nodes' time; bytes, messages: of the network, per token; expert_batch: tokens for which an
    expert is read once; memory: of the node that needs most, and whether that is there."""

    model: str
    kind: Kind
    arrangement: Arrangement
    nodes: int
    batch: int
    tokens_per_second: float
    cost: float
    latency: float
    waiting: float
    bytes: float
    messages: float
    expert_batch: float
    memory: int
    fits: bool

    @property
    def per_node(self) -> float:
        return self.tokens_per_second / self.nodes


@dataclass(frozen=True, slots=True)
class Study:
    """machine: what stands beside figures in a file; created: when."""

    subjects: tuple[Subject, ...]
    options: Options
    rows: tuple[Row, ...]
    machine: dict[str, Any]
    created: str

    def of(self, model: str, arrangement: Arrangement | None = None, **where: int) -> list[Row]:
        """Rows of a model that fit; where: nodes or batch."""
        return [
            row
            for row in self.rows
            if row.model == model and row.fits and arrangement in (None, row.arrangement)
            and all(getattr(row, name) == value for name, value in where.items())
        ]  # fmt: skip


def possible(subject: Subject, nodes: int) -> Iterator[Arrangement]:
    """Of experts apart, each node has one at least."""
    for arrangement in ARRANGEMENTS:
        holders = nodes - 1 if arrangement == "one home" else nodes
        if arrangement == "replicas" or (
            subject.separable and nodes > 1 and subject.layers and holders <= min(subject.tape.experts)
        ):
            yield arrangement


def rows(subjects: Sequence[Subject], options: Options, progress: Progress = silent) -> tuple[Row, ...]:
    """All rows, model by model; those that do not fit in memory are simulated all the same."""
    todo: list[tuple[Subject, Arrangement, int, int]] = [
        (subject, arrangement, nodes, batch)
        for subject in subjects
        for nodes in options.nodes
        for arrangement in possible(subject, nodes)
        for batch in options.batches
    ]
    count, found = Count(progress, "simulating", len(todo), "runs"), []
    for subject, arrangement, nodes, batch in todo:
        count(f"{subject.name}, {arrangement}, {nodes} nodes")
        found.append(_row(subject, arrangement, nodes, batch, options))
    count.end()
    return tuple(found)


def _row(subject: Subject, arrangement: Arrangement, nodes: int, batch: int, options: Options) -> Row:
    setting = Setting(arrangement, nodes, batch, options.network, options.load, options.shared)
    result = simulate(subject, setting, options.seed)
    memory = memory_of(subject, arrangement, nodes, batch)
    return Row(
        model=subject.name,
        kind=subject.kind,
        arrangement=arrangement,
        nodes=nodes,
        batch=batch,
        tokens_per_second=result.tokens_per_second,
        cost=options.price * nodes / result.tokens_per_second / HOUR * MILLION,
        latency=result.latency,
        waiting=result.waiting,
        bytes=result.bytes,
        messages=result.messages,
        expert_batch=result.expert_batch,
        memory=memory,
        fits=options.node_memory is None or memory <= options.node_memory,
    )


def memory_of(subject: Subject, arrangement: Arrangement, nodes: int, batch: int) -> int:
    """Bytes of the node that needs most."""
    each = -(-batch // nodes)
    if arrangement == "replicas":
        return subject.replica_bytes(each)
    if arrangement == "all homes":
        return subject.apart_bytes(each, nodes, home=True, holds=True)
    return max(
        subject.apart_bytes(batch, nodes - 1, home=True, holds=False),
        subject.apart_bytes(0, nodes - 1, home=False, holds=True),
    )


@dataclass(frozen=True, slots=True)
class Crossing:
    """Of a model on so many nodes: the fewest sequences of those tried, from which on experts apart give more tokens
    per second than replicas; None: with none of them. best: the most times as many that they give, `batch` with how
    many sequences; None where no replica fits."""

    model: str
    nodes: int
    arrangement: Arrangement
    since: int | None
    best: float | None
    batch: int


def crossings(study: Study) -> list[Crossing]:
    """For each model with experts, and more than one node."""
    found = []
    for subject in study.subjects:
        for nodes in (n for n in study.options.nodes if n > 1 and subject.layers):
            ratios: list[tuple[int, float | None, Arrangement]] = []
            for batch in study.options.batches:
                apart = [r for r in study.of(subject.name, nodes=nodes, batch=batch) if r.arrangement != "replicas"]
                if not apart:
                    continue
                best = max(apart, key=lambda row: row.tokens_per_second)
                replicas = study.of(subject.name, "replicas", nodes=nodes, batch=batch)
                ratio = best.tokens_per_second / replicas[0].tokens_per_second if replicas else None
                ratios.append((batch, ratio, best.arrangement))
            if ratios:
                found.append(_crossing(subject.name, nodes, ratios))
    return found


def _crossing(model: str, nodes: int, ratios: Sequence[tuple[int, float | None, Arrangement]]) -> Crossing:
    since = None
    for batch, ratio, _ in reversed(ratios):
        if ratio is not None and ratio <= 1:
            break
        since = batch
    batch, best, arrangement = max(ratios, key=lambda found: float("inf") if found[1] is None else found[1])
    return Crossing(model, nodes, arrangement, since, best, batch)
