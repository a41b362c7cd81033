"""Sizes of buffers and chunks, and tables, from shapes alone."""

from __future__ import annotations

import numpy as np

from lapinfer.quant import BAND, GROUP
from lapinfer.runtime.buffers import zeros
from lapinfer.spec import GrowthSpec, RopeSpec

MANY_CHUNKS, FEW_CHUNKS = 24, 4
"""From MANY chunks on, chunks are doubled; below FEW, a band is divided."""
CHUNKS_PER_THREAD = 2
MAX_CHUNK_BYTES = 400_000


def padded(width: int, multiple: int = GROUP) -> int:
    """`width`, rounded up to a multiple."""
    return -(-width // multiple) * multiple


def blocks_in_a_chunk(blocks: int, row_block_bytes: int, least: int) -> int:
    """Row blocks of one chunk of a matrix, from its shape alone, never from the number of threads.

    One band, which is read in one run; two bands if there are many, because long runs read memory faster; a part of a
    band if there are so few that threads would be idle. `least`: blocks that belong together.
    """
    if blocks >= 2 * BAND * MANY_CHUNKS and 2 * BAND * row_block_bytes <= MAX_CHUNK_BYTES:
        return 2 * BAND
    return BAND if blocks >= BAND * FEW_CHUNKS else least


def blocks_of_an_expert(blocks: int, active: int, least: int) -> int:
    """Row blocks of a chunk of one expert, where a token gets `active` experts: two bands, one, or `least`."""
    if active * blocks >= 2 * BAND * MANY_CHUNKS:
        return 2 * BAND
    return BAND if active * blocks >= BAND * FEW_CHUNKS else least


def blocks_of_all_experts(blocks: int, threads: int) -> int:
    """Row blocks of a chunk that takes them from every expert of a token: two bands if threads still have enough to do.

    A whole band is read at twice the speed of halves (bench/LOG.md). The choice changes no result.
    """
    if blocks >= 2 * BAND * CHUNKS_PER_THREAD * threads:
        return 2 * BAND
    return BAND if blocks >= BAND * FEW_CHUNKS else max(blocks // FEW_CHUNKS, 1)


def padded_rows(values: np.ndarray, width: int) -> np.ndarray:
    """float32 values [..., n], each row padded with zeros to whole groups of `width` numbers."""
    out = zeros((*values.shape[:-1], padded(width)))
    out[..., : values.shape[-1]] = values
    return out


def growth_table(growth: GrowthSpec, ctx: int) -> np.ndarray:
    """[ctx] float32: what queries are multiplied with."""
    return 1 + np.float32(growth.beta) * np.log1p(np.arange(ctx) // growth.length).astype(np.float32)


def rope_table(rope: RopeSpec, ctx: int) -> np.ndarray:
    """[ctx, dim] float32: the cosines of all pairs' angles, then the sines; angles in float32, as in transformers."""
    long = rope.long_context and ctx > rope.long_context
    frequencies = np.array(rope.long_inv_freq if long else rope.inv_freq, np.float32)
    scale = np.float32(rope.long_scale if long else rope.scale)
    angles = np.arange(ctx, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles) * scale, np.sin(angles) * scale], axis=1)
