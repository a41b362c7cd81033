"""Sizes of buffers, chunks and tables, by shape alone."""

from __future__ import annotations

import numpy as np

from lapinfer.quant import BAND, GROUP, ROWS
from lapinfer.spec import RopeSpec

MANY_CHUNKS, FEW_CHUNKS = 24, 4
CHUNKS_A_THREAD = 2
MAX_CHUNK_BYTES = 400_000


def padded(width: int, multiple: int = GROUP) -> int:
    return -(-width // multiple) * multiple


def blocks_in_a_chunk(blocks: int, row_block_bytes: int, least: int) -> int:
    """Row blocks that one chunk of a matrix takes: by shape alone, never by the number of threads.

    A band, which is read as one; two where there are enough, since long runs read memory faster; parts of one where
    there are so few that threads would have nothing to do. `least`: blocks that belong together.
    """
    if blocks >= 2 * BAND * MANY_CHUNKS and 2 * BAND * row_block_bytes <= MAX_CHUNK_BYTES:
        return 2 * BAND
    return BAND if blocks >= BAND * FEW_CHUNKS else least


def blocks_of_an_expert(blocks: int, active: int, least: int) -> int:
    """Row blocks that a chunk of one expert takes, of so many experts that a token gets: two bands or one."""
    if active * blocks >= 2 * BAND * MANY_CHUNKS:
        return 2 * BAND
    return BAND if active * blocks >= BAND * FEW_CHUNKS else least


def blocks_of_all_experts(blocks: int, threads: int) -> int:
    """Row blocks that a chunk takes of every expert that a token gets: two bands if threads still have enough to do.

    A band is read as one, at twice the speed of halves (bench/LOG.md). The choice changes no result.
    """
    if blocks >= 2 * BAND * CHUNKS_A_THREAD * threads:
        return 2 * BAND
    return BAND if blocks >= BAND * FEW_CHUNKS else max(blocks // FEW_CHUNKS, 1)


def packed_blocks(part: str, rows: int) -> int:
    """Row blocks of a packed matrix; results that become activations come in whole groups."""
    if part == "gate_up":
        return 2 * (GROUP // ROWS) * -(-rows // 2 // GROUP)
    return (GROUP // ROWS) * -(-rows // GROUP) if part == "up" else -(-rows // ROWS)


def padded_vector(values: np.ndarray, width: int) -> np.ndarray:
    """float32 with zeros behind it, to whole groups."""
    out = np.zeros(padded(width), np.float32)
    out[: len(values)] = values
    return out


def rope_table(rope: RopeSpec, ctx: int) -> np.ndarray:
    """[ctx, dim] float32: cos of every pair's angle, then sin; angles in float32 as the reference has them."""
    long = rope.long_context and ctx > rope.long_context
    frequencies = np.array(rope.long_inv_freq if long else rope.inv_freq, np.float32)
    scale = np.float32(rope.long_scale if long else rope.scale)
    angles = np.arange(ctx, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles) * scale, np.sin(angles) * scale], axis=1)
