"""How fast this machine reads memory, and whether two threads really have two cores: run by a team, as a model is."""

from __future__ import annotations

import time
from statistics import median
from types import TracebackType

import numpy as np

from lapinfer.kernels.control import COUNTER
from lapinfer.kernels.operands import ONE, STEP, TOKENS, KernelId
from lapinfer.machine import beyond_caches
from lapinfer.report.timing import repeated
from lapinfer.runtime.plan import Op, Plan
from lapinfer.runtime.team import Team

CHUNK = 1 << 20
"""Bytes that a thread reads at a time: as much as a few row blocks of a large matrix."""
L1_BYTES = 4096
"""A buffer that stays in every core's first-level cache."""
PARKED_S = 0.06
"""After this long without work a team's helpers sleep, and disturb nobody."""


class Probe:
    """A plan of one op, on `threads` threads: each chunk sums `bytes` of the buffer `rounds` times."""

    def __init__(self, threads: int, buffer: np.ndarray, chunks: int, bytes: int, stride: int, rounds: int):
        from lapinfer.kernels import library

        kernels = library.load(("probe", "lead", "follow", "read_clock"))
        self.sums = np.zeros((chunks, 16), np.float32)
        operands = {"buffer": buffer, "bytes": bytes, "stride": stride, "rounds": rounds, "out": self.sums}
        self._plan = Plan([Op(KernelId("probe"), "probe", "probe", -1, ONE, chunks, operands)], kernels)
        self._team = Team(threads, kernels)
        self._step = np.zeros(len(STEP), np.int64)
        self._step[ONE], self._step[TOKENS] = 1, 2  # more than one token: all threads take part
        self._counters = np.zeros((1, COUNTER), np.int64)

    def run(self) -> int:
        """Nanoseconds of one pass."""
        return self._team.run(self._plan, self._step, self._counters)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._team.close()


def read_bandwidth(threads: int, megabytes: int = 0, seconds: float = 0.5) -> float:
    """Bytes a second that `threads` threads read from a buffer of `megabytes` MiB: the median of repeated passes.

    0: a buffer that no cache holds. One smaller than the last-level cache measures the cache.
    """
    megabytes = megabytes or beyond_caches() // CHUNK
    buffer = np.ones(megabytes * CHUNK // 4, np.float32)
    with Probe(threads, buffer, megabytes, CHUNK, CHUNK, 1) as probe:
        times = repeated(probe.run, seconds)
    return buffer.nbytes / median(times) * 1e9


def thread_scaling(repeats: int = 5) -> float:
    """Speed of two threads over one at sums within the first-level cache: 2 when each has a core of its own now.

    Two threads on one physical core, or beside other busy programs, come out lower. The runs alternate.
    """
    buffer = np.ones(L1_BYTES // 4, np.float32)
    work = (buffer, 64, L1_BYTES, 0, 1000)
    with Probe(1, *work) as one, Probe(2, *work) as two:
        two.run()
        ratios: list[float] = []
        for _ in range(repeats):
            time.sleep(PARKED_S)
            alone = one.run()
            two.run()  # wakes the second thread
            ratios.append(alone / two.run())
    return median(ratios)
