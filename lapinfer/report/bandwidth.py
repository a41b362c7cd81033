"""How fast this machine reads memory, and whether two threads really have two cores: run by a team, as a model is."""

from __future__ import annotations

import time
from contextlib import closing
from statistics import median

import numpy as np

from lapinfer.kernels.operands import ONE, KernelId
from lapinfer.machine import beyond_caches
from lapinfer.report.timing import repeated
from lapinfer.runtime.plan import Op
from lapinfer.runtime.runner import Runner

CHUNK = 1 << 20
"""Bytes that a thread reads at a time: as much as a few row blocks of a large matrix."""
L1_BYTES = 4096
"""A buffer that stays in every core's first-level cache."""
PARKED_S = 0.06
"""After this long without work a team's helpers sleep, and disturb nobody."""


def probe(threads: int, buffer: np.ndarray, chunks: int, bytes: int, stride: int, rounds: int) -> Runner:
    """One op on `threads` threads: each chunk sums `bytes` of the buffer `rounds` times. Close it after use."""
    operands = {
        "buffer": buffer, "bytes": bytes, "stride": stride, "rounds": rounds, "out": np.zeros((chunks, 16), np.float32),
    }  # fmt: skip
    runner = Runner([Op(KernelId("probe"), "probe", "probe", -1, ONE, chunks, operands)], threads)
    runner.begin(2)  # more than one token: all threads take part
    return runner


def read_bandwidth(threads: int, megabytes: int = 0, seconds: float = 0.5) -> float:
    """Bytes per second that `threads` threads read from a buffer of `megabytes` MiB: the median of repeated passes.

    0: a buffer that no cache holds. One smaller than the last-level cache measures the cache.
    """
    megabytes = megabytes or beyond_caches() // CHUNK
    buffer = np.ones(megabytes * CHUNK // 4, np.float32)
    with closing(probe(threads, buffer, megabytes, CHUNK, CHUNK, 1)) as reader:
        times = repeated(reader.run, seconds)
    return buffer.nbytes / median(times) * 1e9


def thread_scaling(repeats: int = 5) -> float:
    """Speed of two threads over one at sums within the first-level cache: 2 when each has a core of its own now.

    Two threads on one physical core, or beside other busy programs, come out lower. The runs alternate.
    """
    buffer = np.ones(L1_BYTES // 4, np.float32)
    work = (buffer, 64, L1_BYTES, 0, 1000)
    with closing(probe(1, *work)) as one, closing(probe(2, *work)) as two:
        two.run()
        ratios: list[float] = []
        for _ in range(repeats):
            time.sleep(PARKED_S)
            alone = one.run()
            two.run()  # wakes the second thread
            ratios.append(alone / two.run())
    return median(ratios)
