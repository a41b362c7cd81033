"""Memory that ops write: it begins where a vector may begin.

Vectors have 64 bytes, as many as a cache line. NumPy's arrays begin 16 bytes into one, so that each vector would lie in
two, and be read at half the speed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

PAIR = 128
"""Bytes: two cache lines, which some processors fetch together."""


def zeros(shape: int | tuple[int, ...], kind: DTypeLike = np.float32) -> np.ndarray:
    """Zeros that begin at a pair of cache lines; like NumPy's, they take no memory before they are touched."""
    kind = np.dtype(kind)
    size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * kind.itemsize
    raw = np.zeros(size + PAIR, np.uint8)
    skip = -raw.ctypes.data % PAIR
    return raw[skip : skip + size].view(kind).reshape(shape)
