"""The largest of many logits, found without sorting them: by the maxima of blocks of 16."""

from __future__ import annotations

import math

import numpy as np

BLOCK = 16
"""Logits a maximum in `block_max` stands for."""


def block_maxima(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, (0, -len(values) % BLOCK), constant_values=-np.inf)
    return padded.reshape(-1, BLOCK).max(axis=1)


def members(blocks: np.ndarray, V: int) -> np.ndarray:
    """Ids of the logits of some blocks, ascending."""
    ids = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    return ids[ids < V] if len(ids) and ids[-1] >= V else ids


def largest(values: np.ndarray, block_max: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest values, largest first, equal ones by id; fewer where others are −∞.

    The k-th largest block maximum has k values at or above it, so smaller blocks hold none of the k largest. Where only
    the best logits were computed, nearly all blocks are −∞: a partition of so many equal numbers takes ten times as
    long.
    """
    blocks = np.flatnonzero(block_max > -math.inf)
    if k < len(blocks):
        maxima = block_max[blocks]
        blocks = blocks[maxima >= np.partition(maxima, len(blocks) - k)[len(blocks) - k]]
    ids = members(blocks, len(values))
    candidates = values[ids]
    if k < len(ids):
        keep = candidates >= np.partition(candidates, len(ids) - k)[len(ids) - k]
        ids, candidates = ids[keep], candidates[keep]
    return ids[np.argsort(-candidates, kind="stable")][:k]
