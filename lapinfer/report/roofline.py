"""What this machine can do at best: bytes it reads and multiply-adds it computes in a second, with our own kernels.

A step can be no faster than the slower of the two for its bytes and its multiply-adds (Williams et al., 2009).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from statistics import median

import numpy as np

from lapinfer.kernels.operands import ACT_F32, ACT_Q8, STORE
from lapinfer.machine import beyond_caches
from lapinfer.quant import ROWS as PACKED_ROWS
from lapinfer.quant.formats import FORMATS as WEIGHT_FORMATS
from lapinfer.report.bandwidth import read_bandwidth
from lapinfer.report.random_weights import random_weights
from lapinfer.report.timing import repeated
from lapinfer.runtime.ops import Limits, Ops
from lapinfer.runtime.runner import Runner
from lapinfer.spec import FeedForwardSpec
from lapinfer.tensors import Tensor

ROWS, COLUMNS, TOKENS = 512, 512, 256
"""A matrix that stays in a core's second-level cache in any format, times the tokens of a prompt."""
REPEATED = 8
"""Products in a pass."""
WIDE = 2048
"""Columns of such weights."""
FORMATS = {"int8": "q8", "float32": "f32"}
"""Arithmetic, and the format whose kernel is measured for it."""

BUSY = 0.9
"""Bandwidths that differ by more than this share say that other programs ran."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """bandwidth: bytes per second by the number of threads that read; peaks: multiply-adds per second of all threads,
    by arithmetic."""

    threads: int
    bandwidth: dict[int, float]
    peaks: dict[str, float]

    @property
    def best_bandwidth(self) -> float:
        """Of all threads."""
        return self.bandwidth[self.threads]

    def seconds(self, nbytes: float, macs: float, kind: str = "int8") -> float:
        """The least that so many bytes and multiply-adds can take."""
        return max(nbytes / self.best_bandwidth, macs / self.peaks[kind])


def measure(threads: int, seconds: float = 0.5) -> Roofline:
    """Of this machine now; bandwidth of one thread and of all."""
    bandwidth = {n: read_bandwidth(n, seconds=seconds) for n in sorted({1, threads})}
    return Roofline(threads, bandwidth, {kind: peak(fmt, threads, seconds) for kind, fmt in FORMATS.items()})


def bandwidth_now(threads: int, seconds: float = 0.1) -> float:
    """Bytes per second that all threads read just now."""
    return read_bandwidth(threads, seconds=seconds)


def peak(format: str, threads: int, seconds: float = 0.5) -> float:
    """Multiply-adds per second of matrix products in a format, from caches."""
    return REPEATED * TOKENS * ROWS * COLUMNS / _pass(format, threads, seconds, (ROWS, COLUMNS), REPEATED, TOKENS)


def weights_bandwidth(format: str, threads: int, seconds: float = 0.3) -> float:
    """Bytes per second of packed weights that one token is multiplied with, from memory: what decoding can have."""
    blocks = beyond_caches() // WEIGHT_FORMATS[format].row_block_bytes(WIDE)
    rows, nbytes = blocks * PACKED_ROWS, blocks * WEIGHT_FORMATS[format].row_block_bytes(WIDE)
    return nbytes / _pass(format, threads, seconds, (rows, WIDE), 1, 1)


def _pass(format: str, threads: int, seconds: float, shape: tuple[int, int], products: int, tokens: int) -> float:
    """Seconds of `products` products of a matrix with so many tokens: the median of several passes."""
    rows, columns = shape
    matrix = Tensor(0, "up", shape, "feed-forward", "matrix", packing="groups")
    weights = random_weights([matrix], {matrix.name: format})
    limits = Limits(1, step=max(tokens, 8), threads=threads)
    build = Ops(columns, {0: FeedForwardSpec(ROWS, "relu", gated=False)}, weights, limits, out=rows)
    build.x[:] = np.random.default_rng(0).standard_normal(build.x.shape, np.float32)
    build.norm("input", None, 0, "input", ACT_Q8 if WEIGHT_FORMATS[build.format(matrix.name)].grouped else ACT_F32)
    for _ in range(products):
        build.matmul(matrix.name, 0, "input", build.tiles, STORE, logical=shape, out=build.y)
    with closing(Runner(build.ops, threads)) as runner:
        runner.begin(tokens)
        return median(repeated(runner.run, seconds)) / 1e9
