"""How a step's attention is divided into pieces of work."""

from __future__ import annotations

import numpy as np

from lapinfer.kernels.operands import KEY_BLOCK, TILE


def attention_items(
    slot: np.ndarray, pos: np.ndarray, items: np.ndarray, part: np.ndarray, partials: int, want_splits: int
) -> int:
    """Fill the step's attention table (operands.ITEM) from its tokens; returns the number of items.

    Neighbouring tokens of a slot (at most TILE) share an item. When there are fewer than `want_splits` items, each
    block of keys becomes an item of its own, so that all threads have work on a single token. The choice never changes
    a result. part [T, 2]: each token's first partial, and whether its keys are split; partials: how many there is room
    for.
    """
    runs: list[tuple[int, int]] = []
    for t in range(len(slot)):
        start, count = runs[-1] if runs else (0, TILE)
        follows = runs and slot[t] == slot[start] and pos[t] == pos[t - 1] + 1
        if follows and count < TILE:
            runs[-1] = (start, count + 1)
        else:
            runs.append((t, 1))
    blocks = [int(pos[start + count - 1]) // KEY_BLOCK + 1 for start, count in runs]
    needed = sum(n * count for n, (_, count) in zip(blocks, runs, strict=True))
    split = len(runs) < want_splits and needed <= partials and sum(blocks) <= len(items)
    if not split:
        for i, (start, count) in enumerate(runs):
            items[i] = start, count, slot[start], 0, blocks[i] - 1, 0
        part[: len(slot), 0] = np.arange(len(slot))
        part[: len(slot), 1] = 0
        return len(runs)
    index, first_partial = 0, 0
    for (start, count), n in zip(runs, blocks, strict=True):
        for block in range(n):
            items[index] = start, count, slot[start], block, block, 1
            index += 1
        for t in range(start, start + count):
            part[t] = first_partial, 1
            first_partial += n
    return index
