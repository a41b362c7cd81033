"""Scales and minima of GGUF's Q4_K and Q5_K: multiples of two float16 by 6-bit numbers (llama.cpp, ggml-quants.c)."""

from __future__ import annotations

import numpy as np


def scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, G] of both, for groups of 32 columns of blocks uint8 [R, C/256, bytes]; minima are ≤ 0.

    A damaged file may have numbers that are none.
    """
    packed = blocks[..., 4:16]
    first, second, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([first & 63, both & 15 | first >> 6 << 4], axis=-1)
    minimum = np.concatenate([second & 63, both >> 4 | second >> 6 << 4], axis=-1)
    with np.errstate(all="ignore"):
        units = blocks[..., :4].copy().view(np.float16).astype(np.float32)
        scales, minima = scale * units[..., :1], minimum * -units[..., 1:]
    return scales.reshape(len(blocks), -1), minima.reshape(len(blocks), -1)
