"""Experts as gpt-oss publishes them: `X_blocks` U8 [E, R, C/32, 16] and `X_scales` U8 [E, R, C/32].

A byte holds two neighbouring columns, the first in its low nibble; a scale is an exponent of two, biased by 127
(OCP Microscaling Formats, v1.0).
"""

from __future__ import annotations

import numpy as np

from lapinfer.errors import CheckpointError
from lapinfer.quant import GROUP
from lapinfer.quant.formats import mxfp4
from lapinfer.quant.groups import Grouped

BLOCKS, SCALES = "_blocks", "_scales"
PAIRS = GROUP // 2
NOT_A_NUMBER = 255


def scales_of(blocks: str) -> str:
    """The name of the scales that belong to a tensor of blocks."""
    return blocks.removesuffix(BLOCKS) + SCALES


def check_shapes(where: str, name: str, blocks: tuple[int, ...], scales: tuple[int, ...] | None) -> None:
    """CheckpointError when blocks and scales do not fit each other."""
    if len(blocks) != 4 or blocks[-1] != PAIRS or scales != blocks[:-1]:
        raise CheckpointError(
            f"{where}: tensor {name!r} has shape {blocks} and its scales {scales or 'are missing'}, expected "
            f"[experts, rows, groups, {PAIRS}] and the same without the last"
        )


def logical_shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """[E, R, C] of stored blocks."""
    return (*blocks[:2], blocks[2] * GROUP)


def groups(where: str, name: str, blocks: np.ndarray, scales: np.ndarray) -> Grouped:
    """The rows of all given experts, one after the other."""
    if (scales == NOT_A_NUMBER).any():
        raise CheckpointError(f"{where}: the scales of tensor {name!r} have values that are not numbers (255)")
    pairs = blocks.reshape(-1, blocks.shape[2] * PAIRS)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)
    return Grouped(mxfp4.FORMAT, codes, np.ascontiguousarray(scales).reshape(len(pairs), -1))
