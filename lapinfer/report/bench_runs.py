"""One test of `lapinfer bench`: its runs, of which each is a turn, and the row that they become."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from lapinfer import __version__
from lapinfer.machine import cpu_name, major_faults, peak_resident_bytes
from lapinfer.report import roofline
from lapinfer.report.against import FEWEST, ratio
from lapinfer.report.costs import Costs
from lapinfer.report.timing import Watch
from lapinfer.runtime.predict import expected_reads

if TYPE_CHECKING:
    from lapinfer.model import Model


@dataclass(frozen=True, slots=True)
class Row:
    """One test; llama-bench's field names where it has them.

    sequences: decoded together, a step for the next token of each; tokens are those of all. Times are of one repetition
    in ns, speeds in tokens per second. touched_mb: bytes per token had to read (weights on the path and KV), in MB
    (10^6), predicted_mb the same from the spec alone (of several tokens that are routed, what chance would choose; of a
    head in two passes, as many of its row blocks as were read), and gb_per_s touched bytes over time,
    best_read_gb_per_s and least_read_gb_per_s what the machine read before and after the turns. paired: run i of each
    model lay beside run i of the others. mmacs: millions of multiply-adds with weights per token. ttft_ms: of a prompt,
    until its last token's logits; tpot_p50_ms, tpot_p99_ms: of single steps of
    decoding. roofline: the least time that the machine needs for these bytes and multiply-adds (report/roofline.py), by
    the time taken. perplexity: of the text perplexity_text, which was given, or which the model's card names.
    peak_rss_mb and major_faults are the process's so far. text: "real", or "random" for a model without a tokenizer.

    tokens_per_step: with speculation, how many a step brings; None without it. ts_relative: of several sequences, or
    with speculation, tokens per second as a multiple of one sequence's, the median of turns in pairs, and the range of
    its true median (report/against.py); None where that was not measured, or in too few turns.
    mb_relative: the same of touched_mb. experts_read: of a model that routes, different experts that a step of decoding
    read in a routed layer, the mean (shared ones included); experts_expected: how many chance would. expert_hit_rate,
    read_mb: of a model whose experts are partly on disk (--memory), the share of chosen experts that were in memory,
    and MB read from the file per token. expert_nodes: nodes that have the experts (--expert-nodes); of a token,
    messages to them, sent_mb and received_mb, waited_ms for their answers, computed_ms of these by the slowest node;
    node_imbalance: the busiest node's work, divided by the mean (runtime/traffic.py).
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
    sequences: int
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
    tokens_per_step: float | None
    ts_relative: float | None
    ts_relative_low: float | None
    ts_relative_high: float | None
    mb_relative: float | None
    experts_read: float | None
    experts_expected: float | None
    expert_hit_rate: float | None
    read_mb: float | None
    expert_nodes: int | None
    messages: float | None
    sent_mb: float | None
    received_mb: float | None
    waited_ms: float | None
    computed_ms: float | None
    node_imbalance: float | None
    cpu_info: str
    test_time: str
    build: str
    paired: bool


@dataclass(frozen=True, slots=True)
class About:
    """What all rows of a model say alike."""

    machine: roofline.Roofline
    text: str
    perplexity: float | None
    perplexity_text: str | None


class Runs:
    """The runs of one test of a model. texts: int32 [sequences, ctx]; p, n, d: tokens of a prompt, of each answer, and
    before them."""

    def __init__(self, model: Model, texts: np.ndarray, p: int, n: int, d: int):
        self.model, self.texts, self.p, self.n, self.d = model, texts, p, n, d
        together = f" x{len(texts)}" if len(texts) > 1 else ""
        self.name = f"{'pp' if p else 'tg'}{p + n}{together}" + (f" @ d{d}" if d else "")
        self.count = (p + n) * len(texts)
        self.pool, self.exchange = getattr(model, "pool", None), getattr(model, "exchange", None)
        self.bandwidths = [roofline.bandwidth_now(model.threads)]
        self.seconds: list[float] = []
        self.watch = Watch(model)
        self.from_pool: Counter[str] = Counter()
        self.traffic: list[dict[str, Any]] = []

    def once(self, *, counted: bool) -> None:
        """A run; one that is not counted warms up."""
        model, pool, d = self.model, self.pool, self.d
        for slot, ids in enumerate(self.texts if d else ()):
            model.prefill(ids[:d], slot, 0)
        if pool is None:  # others had the caches and the cores meanwhile
            model.prefill(self.texts[0, d : d + 1], 0, d)
        else:
            pool.reset()
        if self.exchange is not None:
            self.exchange.traffic.reset()
        watch = self.watch if counted else Watch(model)
        took = watch.prefill(self.texts[0, d : d + self.p], d) if self.p else self._generate(watch)
        if counted:
            self.seconds.append(took)
            if pool is not None and pool.pooled:
                stats = pool.stats()
                self.from_pool.update({name: stats[name] for name in ("hits", "misses", "bytes_read")})
            if self.exchange is not None:
                self.traffic.append(self.exchange.traffic.stats())
        self.bandwidths.append(roofline.bandwidth_now(model.threads))

    def _generate(self, watch: Watch) -> float:
        """Seconds of the answers."""
        return watch.decode(self.texts, self.d, self.n)

    def tokens_per_step(self) -> float | None:
        """Where several tokens of a sequence may come of a step."""
        return None

    @property
    def speeds(self) -> list[float]:
        """Tokens of all sequences per second."""
        return [self.count / s for s in self.seconds]

    def touched_mb(self) -> float:
        """Of a token."""
        return int(self.watch.meter.bytes.sum()) / (len(self.seconds) * self.count) / 1e6

    def row(self, about: About, alone: Runs | None) -> Row:
        """alone: the same test of one sequence, whose runs lay beside these."""
        model, p, n, size, seconds, speeds = self.model, self.p, self.n, len(self.texts), self.seconds, self.speeds
        watch, costs, peak = self.watch, Costs.of(model), peak_resident_bytes()
        bandwidths = [about.machine.best_bandwidth, *self.bandwidths]
        machine = replace(about.machine, bandwidth={**about.machine.bandwidth, about.machine.threads: max(bandwidths)})
        touched, macs = int(watch.meter.bytes.sum()), int(watch.meter.macs.sum())
        return Row(
            model_filename=model.name,
            model_type=f"{model.spec.family} {costs.parameters / 1e6:.0f}M {costs.main_format}",
            model_size=costs.weight_bytes,
            model_n_params=costs.parameters,
            n_params_active=costs.active_parameters,
            test=self.name,
            n_prompt=p,
            n_gen=n,
            n_depth=self.d,
            sequences=size,
            n_threads=model.threads,
            avg_ns=round(1e9 * statistics.mean(seconds)),
            stddev_ns=round(1e9 * statistics.stdev(seconds)) if len(seconds) > 1 else 0,
            avg_ts=statistics.mean(speeds),
            stddev_ts=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
            samples_ns=[round(1e9 * s) for s in seconds],
            samples_ts=speeds,
            touched_mb=self.touched_mb(),
            predicted_mb=self._predicted(costs) / self.count / 1e6,
            mmacs=macs / (len(seconds) * self.count) / 1e6,
            gb_per_s=touched / sum(seconds) / 1e9,
            best_read_gb_per_s=max(bandwidths) / 1e9,
            least_read_gb_per_s=min(bandwidths) / 1e9,
            roofline=None
            if self.pool or self.exchange
            else machine.seconds(touched, macs, costs.arithmetic) / sum(seconds),
            ttft_ms=1e3 * statistics.mean(seconds) if p else None,
            tpot_p50_ms=1e3 * float(np.percentile(watch.seconds, 50)) if n else None,
            tpot_p99_ms=1e3 * float(np.percentile(watch.seconds, 99)) if n else None,
            perplexity=about.perplexity,
            perplexity_text=about.perplexity_text,
            compile_s=model.compile_s,
            load_s=model.load_s,
            peak_rss_mb=None if peak is None else peak / 1e6,
            major_faults=major_faults(),
            text=about.text,
            tokens_per_step=self.tokens_per_step(),
            **self._beside(alone),
            **self._experts(),
            **self._from_disk(),
            **self._from_nodes(),
            cpu_info=f"{cpu_name()} ({os.cpu_count()} threads)",
            test_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            build=f"lapinfer {__version__}",
            paired=False,
        )

    def _predicted(self, costs: Costs) -> int:
        """Bytes of a run from the spec alone, but for the row blocks of the head that the last run has read."""
        p, n, d, slots, longest = self.p, self.n, self.d, np.arange(len(self.texts)), self.model.max_step
        if n:
            steps = zip(range(d, d + n), self.watch.blocks[-n:], strict=True)
            return sum(
                sum(costs.touched(np.full(len(slots), pos), len(slots), slots, best_blocks=blocks).values())
                for pos, blocks in steps
            )
        *others, last = (range(first, min(first + longest, d + p)) for first in range(d, d + p, longest))
        without = sum(sum(costs.touched(pos, wanted=0).values()) for pos in others)
        return without + sum(costs.touched(last, best_blocks=self.watch.blocks[-1]).values())

    def _beside(self, alone: Runs | None) -> dict[str, float | None]:
        """Speed and bytes of a token as multiples of those of one sequence."""
        names = ("ts_relative", "ts_relative_low", "ts_relative_high", "mb_relative")
        nothing: dict[str, float | None] = dict.fromkeys(names)
        if alone is None or alone is self:
            return nothing
        found, touched = ratio(self.speeds, alone.speeds), {"mb_relative": self.touched_mb() / alone.touched_mb()}
        if found.turns < FEWEST:
            return nothing | touched
        return {"ts_relative": found.middle, "ts_relative_low": found.low, "ts_relative_high": found.high, **touched}

    def _experts(self) -> dict[str, float | None]:
        """Different experts that a step of decoding reads in a routed layer, and how many chance would."""
        expected, meter = expected_reads(self.model.spec, len(self.texts))[0], self.watch.meter
        if not self.n or not len(expected):
            return {"experts_read": None, "experts_expected": None}
        return {
            "experts_read": meter.experts / meter.steps / len(expected), "experts_expected": float(expected.mean()),
        }  # fmt: skip

    def _from_disk(self) -> dict[str, float | None]:
        """Share of experts found in memory, and MB read per token."""
        if self.pool is None or not self.pool.pooled:
            return {"expert_hit_rate": None, "read_mb": None}
        n, tokens = self.from_pool, len(self.seconds) * self.count
        return {
            "expert_hit_rate": n["hits"] / max(n["hits"] + n["misses"], 1), "read_mb": n["bytes_read"] / tokens / 1e6,
        }  # fmt: skip

    def _from_nodes(self) -> dict[str, Any]:
        """What experts on other nodes cost a token."""
        names = {
            "messages": ("messages", 1.0), "sent_mb": ("bytes_sent", 1e-6), "received_mb": ("bytes_received", 1e-6),
            "waited_ms": ("seconds_waited", 1e3), "computed_ms": ("seconds_of_slowest", 1e3),
        }  # fmt: skip
        if not self.traffic:
            return dict.fromkeys(("expert_nodes", "node_imbalance", *names))
        tokens = len(self.seconds) * self.count
        sums = {name: factor * sum(t[key] for t in self.traffic) / tokens for name, (key, factor) in names.items()}
        imbalance = statistics.mean(t["imbalance"] for t in self.traffic)
        return {"expert_nodes": self.traffic[0]["nodes"], "node_imbalance": imbalance, **sums}
