"""What reading pieces of memory takes when each tells where the next one lies, and nothing else is done with them.

So reads a descent through a tree: a node's decision says which row comes next, and the last one which leaf. It is
a yardstick, not a bound: a layer asks for its leaf's lines ahead, and can be faster than these plain reads.
"""

# pyright: reportCallIssue=false
# (intrinsics are called without the typing context that they are declared with)

from __future__ import annotations

import time
from statistics import median

import numpy as np
from numba import njit

from lapinfer.kernels.simd import load_f32x16, reduce_sum, splat_f32

F32 = np.float32
LINE = 64
VISITS, PASSES = 400, 5


@njit
def read_in_turn(base, places, sizes):
    """Sum pieces of `sizes` bytes at base + places[visit, piece], each as four streams; the sum moves the next by 0."""
    total = F32(0)
    for visit in range(places.shape[0]):
        for piece in range(places.shape[1]):
            quarter = sizes[piece] // 256 * 64
            at = base + places[visit, piece] + int(total)
            a, b, c, d = splat_f32(F32(0)), splat_f32(F32(0)), splat_f32(F32(0)), splat_f32(F32(0))
            for line in range(at, at + quarter, 64):
                a = a + load_f32x16(line)
                b = b + load_f32x16(line + quarter)
                c = c + load_f32x16(line + 2 * quarter)
                d = d + load_f32x16(line + 3 * quarter)
            total = reduce_sum((a + b) + (c + d))
    return total


def microseconds(buffer: np.ndarray, pieces: list[int]) -> float:
    """Of a visit of `pieces` (bytes), one after the other, at random places of zeros that no cache holds."""
    rng = np.random.default_rng(0)
    sizes = np.array(pieces, np.int64)
    spent = []
    for _ in range(PASSES + 1):
        most = (buffer.nbytes - sizes - 4 * LINE) // LINE
        places = LINE * rng.integers(0, most, (VISITS, len(pieces)))
        began = time.perf_counter()
        read_in_turn(buffer.ctypes.data, places, sizes)
        spent.append(time.perf_counter() - began)
    return 1e6 * median(spent[1:]) / VISITS
