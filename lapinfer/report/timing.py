"""How all reports measure: what warms up is never counted, and a meter of their own counts what the steps touched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.quant.choice import TYPICAL_BEST

if TYPE_CHECKING:
    from lapinfer.model import Model

LEAST = 3
"""Repeats of a measurement at least."""

Step = tuple[np.ndarray, np.ndarray, np.ndarray]
"""token, slot, pos [T]."""


def repeated(run: Callable[[], float], seconds: float) -> list[float]:
    """What `run` returns, again and again for so many seconds, and at least LEAST times. A call before warms up."""
    run()
    until = time.perf_counter() + seconds
    results: list[float] = []
    while len(results) < LEAST or time.perf_counter() < until:
        results.append(run())
    return results


def head_blocks(model: Model) -> int | None:
    """Row blocks of the head that the last step has read for the best logits; None where it gave all, or none."""
    return None if model.best_blocks is None else int(model.best_blocks.sum())


class Watch:
    """Runs a model's steps under a meter of its own; the model's usage does not change.

    best: how many of the best logits steps give, by default as many as generation asks for; None for all. seconds,
    positions: of each call of `step`. blocks: what `head_blocks` says after each call of `step` and of `prefill`.
    """

    def __init__(self, model: Model, best: int | None = TYPICAL_BEST):
        self.model, self.best = model, best
        self.seconds: list[float] = []
        self.positions: list[np.ndarray] = []
        self.blocks: list[int | None] = []
        self.meter = model.runner.new_meter()

    def step(self, token: np.ndarray, slot: np.ndarray, pos: np.ndarray) -> None:
        """The logits are those of a prompt's last token, or of each token of a batch."""
        want = np.zeros(len(pos), bool)
        want[-1 if slot[0] == slot[-1] else slice(None)] = True
        self.seconds.append(self._timed(lambda: self.model.step(token, slot, pos, want, best=self.best)))
        self.positions.append(pos)
        self.blocks.append(head_blocks(self.model))

    def steps(self, steps: Iterable[Step], seconds: float = inf) -> Watch:
        """Runs (token, slot, pos) of each, until they took so many seconds together. The first one warms up: it is
        neither counted, nor are its experts recorded."""
        before = len(self.seconds)
        for i, step in enumerate(steps):
            if i == 0:
                routing, self.model.routing = self.model.routing, None
                try:
                    Watch(self.model, self.best).step(*step)
                finally:
                    self.model.routing = routing
                continue
            self.step(*step)
            if sum(self.seconds[before:]) > seconds and len(self.seconds) - before >= LEAST:
                break
        return self

    def decode(self, ids: np.ndarray, start: int, count: int) -> float:
        """Seconds of `count` tokens ids[start : …] in slot 0, one per step, at their own positions; of ids [B, tokens],
        of B sequences in slots of their own, a token of each per step."""
        columns, before = np.ascontiguousarray(np.atleast_2d(ids).T), len(self.seconds)
        slot = np.arange(columns.shape[1], dtype=np.int32)
        for pos in range(start, start + count):
            self.step(columns[pos], slot, np.full(len(slot), pos, np.int32))
        return sum(self.seconds[before:])

    def prefill(self, ids: np.ndarray, start: int = 0) -> float:
        """Seconds of a prompt in slot 0 from position `start` on, in as large steps as the model takes."""
        seconds = self._timed(lambda: self.model.prefill(ids, 0, start, best=self.best))
        self.blocks.append(head_blocks(self.model))
        return seconds

    def _timed(self, run: Callable[[], object]) -> float:
        with self.model.runner.metered(self.meter):
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

    @property
    def attended(self) -> int:
        """Multiply-adds of attention, which the meter does not count."""
        return sum(op.cost.attention_macs(pos) for op in self.model.runner.plan.ops for pos in self.positions)
