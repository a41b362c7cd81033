"""Ops that can run: their machine code, their plan, a team of threads, and a meter of what they touch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from lapinfer.interrupts import held
from lapinfer.kernels.operands import CROWD, CROWD_TILES, LONE, ONE, STEP, TILE, TILES, TOKENS
from lapinfer.progress import Progress, silent
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.plan import Op, Plan
from lapinfer.runtime.team import Team


class Runner:
    """Compiles the kernels of a list of ops, and runs the ops step by step.

        runner.begin(tokens)        # then enter what else the ops need into runner.words
        nanoseconds = runner.run()

    header: the step's counts (kernels/operands.STEP), int64. words: the same memory, for single words without NumPy's
    overhead. run: runs a step; replaced while steps are traced (runtime/trace.py).
    """

    def __init__(self, ops: list[Op], threads: int, *, progress: Progress = silent, apart: bool = False):
        """progress: of kernels that must be compiled. apart: compile them in a separate process."""
        self._progress = progress
        began = time.perf_counter()
        with held():  # of the objects of Numba and LLVM, and of threads that are being started
            from lapinfer.kernels import library  # imports Numba

            names = {op.kernel.name for op in ops} | {"lead", "follow", "read_clock"}
            kernels = library.load(names, progress, apart=apart)
            self.compile_s = time.perf_counter() - began
            self.plan = Plan(ops, kernels)
            self.team = Team(threads, kernels)
        self.header = np.zeros(len(STEP), np.int64)
        self.words = self.header.data
        self.meter = self.new_meter()
        self.team.attach(self.plan, self.header, self.meter.counters)
        self.run: Callable[[], int] = self.team.run

    def begin(self, tokens: int) -> None:
        """Enter a step's number of tokens into its header."""
        words, tiles = self.words, -(-tokens // TILE)
        words[ONE], words[TOKENS], words[TILES] = 1, tokens, tiles
        words[LONE], words[CROWD], words[CROWD_TILES] = int(tokens == 1), int(tokens > 1), tiles if tokens > 1 else 0

    def replace(self, index: int, op: Op) -> None:
        """Put another op in the place of one, between two steps."""
        name = op.kernel.name
        with held():
            from lapinfer.kernels import library

            self.plan.replace(index, op, library.load([name], self._progress)[name])

    def new_meter(self) -> Meter:
        """A meter that has counted nothing yet."""
        return Meter(self.plan, self.team.ns_per_tick)

    @contextmanager
    def metered(self, meter: Meter) -> Iterator[None]:
        """While open, steps are counted by this meter instead of the usual one."""
        usual = self.meter
        self._count_with(meter)
        try:
            yield
        finally:
            self._count_with(usual)

    def _count_with(self, meter: Meter) -> None:
        self.meter = meter
        self.team.attach(self.plan, self.header, meter.counters)

    def close(self) -> None:
        """Let the team's threads end."""
        self.team.close()
