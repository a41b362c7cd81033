"""Counters of a server, as Prometheus reads them (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lapinfer.text.embedding import Embedding
from lapinfer.text.generation import Token
from lapinfer.text.reuse import ReuseStats, Tier
from lapinfer.text.scheduler import Stats
from lapinfer.text.shared_steps import Event

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TIERS = ("slots", "memory", "disk")
"""Where beginnings of prompts are held (`ReuseStats`)."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a loaded model has counted: its scheduler, its meter (steps, bytes by part), its store of beginnings."""

    stats: Stats
    steps: int
    parts: Mapping[str, int]
    reuse: ReuseStats


Look = Callable[[], Mapping[str, Counted]]
"""Of each loaded model, by its name."""


class Metrics:
    """What is counted as it happens, by model; `look` asks loaded models for what they count themselves."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("model",)
        by_model = {"labelnames": labels, "registry": self.registry}
        self._requests = Counter("lapinfer_requests", "Requests that have begun to answer.", **by_model)
        self._refused = Counter("lapinfer_requests_refused", "Requests that found the queue full.", **by_model)
        self._prompt = Counter("lapinfer_prompt_tokens", "Tokens of prompts, those of the cache included.", **by_model)
        self._generated = Counter("lapinfer_generated_tokens", "Tokens of answers.", **by_model)
        self._first = Histogram(
            "lapinfer_time_to_first_token_seconds", "From a request to its first token.", labels,
            registry=self.registry, buckets=SECONDS,
        )  # fmt: skip
        self._gap = Histogram(
            "lapinfer_time_between_tokens_seconds", "From a token of an answer to the next one.", labels,
            registry=self.registry, buckets=GAPS,
        )  # fmt: skip

    def watch(self, look: Look) -> None:
        """Ask `look` whenever somebody asks."""
        self.registry.register(_Loaded(look))

    def event(self, model: str, event: Event, gap: float | None) -> None:
        """A token of an answer, or an embedding; gap: seconds since the one before, None for the first."""
        if isinstance(event, Token):
            self._token(model, event, gap)
        elif isinstance(event, Embedding):
            self._requests.labels(model).inc()
            self._prompt.labels(model).inc(event.prompt_tokens)

    def _token(self, model: str, token: Token, gap: float | None) -> None:
        self._generated.labels(model).inc()
        if gap is not None:
            self._gap.labels(model).observe(gap)
            return
        timings = token.timings
        self._requests.labels(model).inc()
        self._prompt.labels(model).inc(timings.prompt_tokens)
        self._first.labels(model).observe(timings.ttft_ms / 1e3)

    def refused(self, model: str) -> None:
        self._refused.labels(model).inc()

    def exposition(self) -> bytes:
        """All of it, as text."""
        return generate_latest(self.registry)


class _Loaded(Collector):
    """What models count themselves: from zero whenever one is loaded anew, which Prometheus knows how to read."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        of, where, part = ["model"], ["model", "tier"], ["model", "part"]
        running = GaugeMetricFamily("lapinfer_requests_running", "Requests that have a slot.", labels=of)
        waiting = GaugeMetricFamily("lapinfer_requests_waiting", "Requests that wait for a slot.", labels=of)
        cancelled = CounterMetricFamily("lapinfer_requests_cancelled", "Requests whose clients left.", labels=of)
        steps = CounterMetricFamily("lapinfer_steps", "Steps of the model.", labels=of)
        touched = CounterMetricFamily("lapinfer_touched_bytes", "Bytes that steps had to read, by part.", labels=part)
        hits = CounterMetricFamily("lapinfer_prefix_hits", "Prompts of which a beginning was held.", labels=where)
        tokens = CounterMetricFamily("lapinfer_prefix_hit_tokens", "Tokens of these beginnings.", labels=where)
        kept = GaugeMetricFamily("lapinfer_prefix_bytes", "Bytes of beginnings that are kept.", labels=where)
        misses = CounterMetricFamily("lapinfer_prefix_misses", "Prompts of which nothing was held.", labels=of)
        for model, counted in self._look().items():
            running.add_metric([model], counted.stats.running)
            waiting.add_metric([model], counted.stats.waiting)
            cancelled.add_metric([model], counted.stats.cancelled)
            steps.add_metric([model], counted.steps)
            for name, count in counted.parts.items():
                touched.add_metric([model, name], count)
            for name in TIERS:
                tier: Tier = getattr(counted.reuse, name)
                hits.add_metric([model, name], tier.hits)
                tokens.add_metric([model, name], tier.tokens)
                kept.add_metric([model, name], tier.nbytes)
            misses.add_metric([model], counted.reuse.misses)
        yield from (running, waiting, cancelled, steps, touched, hits, tokens, kept, misses)
