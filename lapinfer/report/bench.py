"""Speed of prompt processing and generation by llama-bench's two tests, with its names.

pp512: the tokens of a prompt of 512, as large steps as the model takes. tg128: 128 tokens, one per step, from
an empty context. "@ d1024" after either: at a depth of 1024 tokens, whose reading is not timed. Nothing is
sampled. The first run of each test warms up and is not counted; compile and load times have their own columns.
Models take turns, a run each (report/turns.py), and the machine's bandwidth is measured between them.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lapinfer import __version__
from lapinfer.checkpoint.shipped import card_figures
from lapinfer.errors import InputError, LapinferError
from lapinfer.machine import available_memory, cpu_name, major_faults, peak_resident_bytes
from lapinfer.options import LoadOptions
from lapinfer.report import roofline
from lapinfer.report.candidates import Candidate
from lapinfer.report.costs import Costs
from lapinfer.report.perplexity import perplexity
from lapinfer.report.texts import passage, sample_ids
from lapinfer.report.timing import Watch
from lapinfer.report.turns import Loaded, take_turns
from lapinfer.text.language_model import LanguageModel
from lapinfer.texts import read_text

if TYPE_CHECKING:
    from lapinfer.model import Model

Progress = Callable[..., Any]
ROOFLINE_S = 0.2
"""Seconds for each figure of the machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """One test; llama-bench's field names where it has them.

    Times are of one repetition in ns, speeds in tokens per second. touched_mb: bytes per token had to read (weights on
    the path and KV), in MB (10^6), predicted_mb the same from the spec alone (of several tokens that are routed, what
    chance would choose), and gb_per_s touched bytes over time, best_read_gb_per_s and least_read_gb_per_s what the
    machine read before and after the turns. paired: run i of each model lay beside run i of the others. mmacs: millions
    of multiply-adds with weights per token. ttft_ms: of a prompt, until its last token's logits; tpot_p50_ms,
    tpot_p99_ms: of single tokens. roofline: the least time that the machine needs for these bytes and multiply-adds
    (report/roofline.py), by the time taken. perplexity: of the text perplexity_text, which was given, or which the
    model's card names. peak_rss_mb and major_faults are the process's so far. expert_hit_rate, read_mb: of a model
    whose experts are partly on disk (--memory): the share of chosen experts that were in memory, and MB read from the
    file per token. text: "real", or "random" for a model without a tokenizer.
    """

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_params_active: int
    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    touched_mb: float
    predicted_mb: float
    mmacs: float
    gb_per_s: float
    best_read_gb_per_s: float
    least_read_gb_per_s: float
    roofline: float | None
    ttft_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    perplexity: float | None
    perplexity_text: str | None
    compile_s: float
    load_s: float
    peak_rss_mb: float | None
    major_faults: int | None
    text: str
    expert_hit_rate: float | None
    read_mb: float | None
    cpu_info: str
    test_time: str
    build: str
    paired: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A model of several that could not be measured."""

    model: str
    error: LapinferError | OSError | MemoryError


@dataclass(frozen=True, slots=True)
class Tests:
    """What is measured of a model: each length of a prompt and of an answer at each depth."""

    n_prompt: Sequence[int] = (512,)
    n_gen: Sequence[int] = (128,)
    depth: Sequence[int] = (0,)
    repetitions: int = 5
    text: Path | None = None

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise InputError(f"repetitions: expected a number from 1, got {self.repetitions}")
        if not self.lengths:
            raise InputError("nothing to measure: -p and -n are both 0")
        if self.text is not None and not self.text.is_file():
            raise InputError(f"{self.text}: no such file; expected a text to measure perplexity on")

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(tokens of a prompt, or 0; tokens to generate, or 0)."""
        return [(p, 0) for p in self.n_prompt if p] + [(0, n) for n in self.n_gen if n]

    @property
    def ctx(self) -> int:
        return max(map(sum, self.lengths)) + max(self.depth)


def bench(
    candidates: Sequence[Candidate], options: LoadOptions, tests: Tests, threads: Sequence[int | None] = (None,),
    progress: Progress | None = None,
) -> Iterator[tuple[int, Row | Failure]]:  # fmt: skip
    """A row for each combination as soon as it is measured, with the place of its model and threads among all.

    A model that fails does not keep others from theirs.
    """
    say = progress or (lambda *args: None)
    grid = list(itertools.product(candidates, threads))
    sides = [
        partial(_turns, candidate, replace(options, threads=n, ctx=tests.ctx), tests, say) for candidate, n in grid
    ]
    # A bound of memory is the process's: one model at a time may use it.
    groups = [range(len(sides))] if options.memory is None else [range(i, i + 1) for i in range(len(sides))]
    failed: set[Candidate] = set()
    for group in groups:
        for turn in take_turns([sides[i] for i in group], available_memory(), say):
            place = group[turn.side]
            candidate = grid[place][0]
            if isinstance(turn.value, Row):
                yield place, replace(turn.value, paired=turn.paired)
            elif turn.value is not None and candidate not in failed:
                failed.add(candidate)
                yield place, Failure(str(candidate), turn.value)


def _turns(
    candidate: Candidate, options: LoadOptions, tests: Tests, say: Progress
) -> Generator[Loaded | Row | None, None, None]:
    """A row at the end of each test, and nothing after the turns before."""
    with candidate.open(options, say) as loaded:
        model = loaded.model
        yield Loaded.of(model)
        ids, text = sample_ids(loaded.tokenizer, model.spec.vocab, passage())
        ids = np.resize(ids, tests.ctx)
        say(f"{model.name}: measuring this machine")
        machine = roofline.measure(model.threads, seconds=ROOFLINE_S)
        quality = _perplexity(loaded, tests.text)
        for (p, n), d in itertools.product(tests.lengths, tests.depth):
            yield from _measure(model, ids, text, p, n, d, tests.repetitions, machine, quality, say)


def _perplexity(loaded: LanguageModel, text: Path | None) -> tuple[float | None, str | None]:
    """Of a text, and its name; without one, what the card of a shipped model says."""
    if text is not None:
        ctx = min(loaded.model.ctx, loaded.spec.context)
        *_, result = perplexity(loaded, read_text(text), ctx)
        return result.ppl, text.name
    if (card := card_figures(loaded.model.name)) is None:
        return None, None
    return card["perplexity"], f"{card['text']} (from the card)"


def _measure(
    model: Model, ids: np.ndarray, text: str, p: int, n: int, d: int, repetitions: int, machine: roofline.Roofline,
    quality: tuple[float | None, str | None], progress: Progress,
) -> Generator[Row | None, None, None]:  # fmt: skip
    count = p + n
    test = f"{'pp' if p else 'tg'}{count}" + (f" @ d{d}" if d else "")
    seconds: list[float] = []
    bandwidths = [machine.best_bandwidth, roofline.bandwidth_now(model.threads)]
    pool = getattr(model, "pool", None)
    watch = Watch(model)
    for repetition in range(repetitions + 1):
        if repetition:
            yield None
        progress(f"{model.name} {test}", repetition, repetitions + 1)
        with model.lock:
            if d:
                model.prefill(ids[:d], 0, 0)
            if pool is None:  # others had the caches and the cores meanwhile
                model.prefill(ids[d : d + 1], 0, d)
            if repetition == 1:  # what warmed up is not counted
                watch, seconds = Watch(model), []
            if pool is not None and repetition <= 1:
                pool.reset()
            seconds.append(watch.prefill(ids[d : d + p], d) if p else watch.decode(ids, d, n))
        bandwidths.append(roofline.bandwidth_now(model.threads))
    progress(f"{model.name} {test}", repetitions + 1, repetitions + 1)
    machine = replace(machine, bandwidth={**machine.bandwidth, machine.threads: max(bandwidths)})
    touched, macs = int(watch.meter.bytes.sum()), int(watch.meter.macs.sum())
    speeds = [count / s for s in seconds]
    costs, peak, tokens = Costs.of(model), peak_resident_bytes(), repetitions * count
    yield Row(
        model_filename=model.name,
        model_type=f"{model.spec.family} {costs.parameters / 1e6:.0f}M {costs.main_format}",
        model_size=costs.weight_bytes,
        model_n_params=costs.parameters,
        n_params_active=costs.active_parameters,
        test=test,
        n_prompt=p,
        n_gen=n,
        n_depth=d,
        n_threads=model.threads,
        avg_ns=round(1e9 * statistics.mean(seconds)),
        stddev_ns=round(1e9 * statistics.stdev(seconds)) if len(seconds) > 1 else 0,
        avg_ts=statistics.mean(speeds),
        stddev_ts=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_ns=[round(1e9 * s) for s in seconds],
        samples_ts=speeds,
        touched_mb=touched / tokens / 1e6,
        predicted_mb=_predicted(costs, model.max_step, p, n, d) / count / 1e6,
        mmacs=macs / tokens / 1e6,
        gb_per_s=touched / sum(seconds) / 1e9,
        best_read_gb_per_s=max(bandwidths) / 1e9,
        least_read_gb_per_s=min(bandwidths) / 1e9,
        roofline=None if pool else machine.seconds(touched, macs, costs.arithmetic) / sum(seconds),
        ttft_ms=1e3 * statistics.mean(seconds) if p else None,
        tpot_p50_ms=1e3 * float(np.percentile(watch.seconds, 50)) if n else None,
        tpot_p99_ms=1e3 * float(np.percentile(watch.seconds, 99)) if n else None,
        perplexity=quality[0],
        perplexity_text=quality[1],
        compile_s=model.compile_s,
        load_s=model.load_s,
        peak_rss_mb=None if peak is None else peak / 1e6,
        major_faults=major_faults(),
        text=text,
        **_from_disk(pool, tokens),
        cpu_info=f"{cpu_name()} ({os.cpu_count()} threads)",
        test_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        build=f"lapinfer {__version__}",
        paired=False,
    )


def _predicted(costs: Costs, max_step: int, p: int, n: int, d: int) -> int:
    """Bytes of a test from the spec alone."""
    size = 1 if n else max_step
    steps = [range(first, min(first + size, d + p + n)) for first in range(d, d + p + n, size)]
    return sum(sum(costs.touched(pos, wanted=int(bool(n) or pos is steps[-1])).values()) for pos in steps)


def _from_disk(pool: Any, tokens: int) -> dict[str, float | None]:
    """Share of experts found in memory, and MB read per token."""
    if pool is None or not pool.pooled:
        return {"expert_hit_rate": None, "read_mb": None}
    n = pool.stats()
    used = n["hits"] + n["misses"]
    return {"expert_hit_rate": n["hits"] / max(used, 1), "read_mb": n["bytes_read"] / tokens / 1e6}
