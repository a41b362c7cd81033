"""Times of a model that runs here: steps of several sizes, a prompt, and what its experts take of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from lapinfer.machine import largest_cache
from lapinfer.model import Model
from lapinfer.report.costs import Costs
from lapinfer.report.timing import Watch
from lapinfer.scale.foresee import PROMPT, SIZES, expert, position_bytes
from lapinfer.scale.tape import Tape, drawn, recorded, routed_layers
from lapinfer.scale.times import Rates, Step, Times, fit

ROUNDS = 5
"""Each size has its turn in each round; the fastest counts, since whatever else the machine does only slows it."""
STEPS = 12
"""Of a size in a round, at most …"""
SECONDS = 0.1
"""… and until they have taken so long together."""
ENOUGH = 1.0
"""Seconds after which a size has no further rounds, if it had two."""
CTX = PROMPT + 1
"""What a model is loaded with, and SIZES[-1] slots."""


def measured_times(
    model: Model, ids: np.ndarray, bandwidth: float, count: Callable[[str], object] = lambda what: None
) -> Times:
    """ids: a text, of which each sequence reads another place. bandwidth: bytes per second that one process reads."""
    costs = Costs.of(model)
    layers = len(routed_layers(model.spec))
    in_caches = costs.weight_bytes <= largest_cache()

    def step(tokens: int, seconds: float, nbytes: float) -> Step:
        waiting = nbytes / bandwidth / seconds if seconds and not in_caches else 0.0
        return Step(tokens, seconds, min(waiting, 1.0))

    best = _fastest(model, ids, count)
    steps = [step(tokens, run.others, run.other_bytes) for tokens, run in best.items()]
    head = [step(tokens, run.head, run.head_bytes) for tokens, run in best.items() if tokens != PROMPT]
    rates = Rates(0.0, 0.0, 0.0)
    if layers:
        works = [(run.expert_bytes / layers, run.expert_macs / layers) for run in best.values()]
        rates = fit(works, [run.experts / layers for run in best.values()])
    return Times(tuple(steps), tuple(head), position_bytes(costs) / bandwidth, rates, *expert(costs))


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds, bytes and multiply-adds of a step, the mean of some: of experts, of the head, and of all else."""

    experts: float
    expert_bytes: float
    expert_macs: float
    head: float
    head_bytes: float
    others: float
    other_bytes: float

    @classmethod
    def of(cls, watch: Watch) -> _Run:
        n, rows = len(watch.seconds), watch.meter.by_op()

        def mean(what: str, *parts: str) -> float:
            return sum(row[what] for row in rows if not parts or row["part"] in parts) / n

        experts, head = mean("seconds", "experts"), mean("seconds", "head")
        return cls(
            experts, mean("bytes", "experts"), mean("macs", "experts"), head, mean("bytes", "head"),
            fmean(watch.seconds) - experts - head, mean("bytes") - mean("bytes", "experts", "head"),
        )  # fmt: skip


def _fastest(model: Model, ids: np.ndarray, count: Callable[[str], object]) -> dict[int, _Run]:
    """By the tokens of a step: the least time of each part."""
    sizes = [tokens for tokens in SIZES if tokens <= min(model.slots, model.max_step, model.max_wanted)]
    runs: dict[int, list[_Run]] = {}
    spent: dict[int, float] = defaultdict(float)
    for turn in range(ROUNDS):
        count(f"{model.name}: round {turn + 1} of {ROUNDS}")
        for tokens in (*sizes, *([PROMPT] if model.max_step >= PROMPT else [])):
            if turn >= 2 and spent[tokens] > ENOUGH:
                continue
            watch = Watch(model).steps(_prompts(ids) if tokens == PROMPT else decoded(ids, tokens), SECONDS)
            spent[tokens] += sum(watch.seconds)
            runs.setdefault(tokens, []).append(_Run.of(watch))
    return {
        tokens: replace(
            own[0], **{part: min(getattr(run, part) for run in own) for part in ("experts", "head", "others")}
        )
        for tokens, own in runs.items()
    }  # fmt: skip


def tape_of(model: Model, ids: np.ndarray) -> Tape:
    """What tokens of a text choose; of a dense model, nothing."""
    return recorded(model, ids) if routed_layers(model.spec) else drawn(model.spec)


def decoded(ids: np.ndarray, sequences: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A token of each sequence, from the begin of its own place in the text; the first step warms up."""
    slots = np.arange(sequences)
    places = slots * (len(ids) // sequences)
    for i in range(STEPS + 1):
        yield ids[(places + i) % len(ids)], slots, np.full(sequences, i)


def _prompts(ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The text, piece by piece, each a prompt of its own."""
    for i in range(STEPS + 1):
        piece = ids[(i * PROMPT + np.arange(PROMPT)) % len(ids)]
        yield piece, np.zeros(PROMPT, np.int64), np.arange(PROMPT)
