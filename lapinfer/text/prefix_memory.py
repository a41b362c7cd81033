"""Beginnings of texts in memory: what slots held after them, as much as fits; what was used longest ago goes first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapinfer.runtime.slots import SlotState, can_shorten, shortened
from lapinfer.spec import ModelSpec
from lapinfer.text.prefix_files import agreeing


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    ids: np.ndarray
    state: SlotState

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.state.nbytes


class PrefixMemory:
    """States of one model's slots by their ids, at most `limit` bytes of them."""

    def __init__(self, spec: ModelSpec, limit: int) -> None:
        self._spec, self._limit = spec, limit
        self._kept: list[_Kept] = []  # used longest ago first

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(kept.nbytes for kept in self._kept)

    def add(self, ids: np.ndarray, state: SlotState) -> bool:
        """Whether it is kept; then what it contains, as its beginning, is not."""
        new = _Kept(ids, state)
        if new.nbytes > self._limit:
            return False
        self._kept = [kept for kept in self._kept if not contains(self._spec, ids, kept.ids)] + [new]
        while self.nbytes > self._limit:
            del self._kept[0]
        return True

    def count(self, ids: np.ndarray) -> int:
        """How many of `ids` a slot can be given."""
        return self._best(ids)[0]

    def agreeing(self, ids: np.ndarray) -> int:
        """How many of `ids` any text here begins with."""
        return max((agreeing(kept.ids, ids) for kept in self._kept), default=0)

    def find(self, ids: np.ndarray) -> SlotState | None:
        """What a slot held after the longest beginning of `ids`."""
        count, best = self._best(ids)
        if best is None:
            return None
        self._kept = [*(kept for kept in self._kept if kept is not best), best]
        return shortened(self._spec, best.state, count)

    def _best(self, ids: np.ndarray) -> tuple[int, _Kept | None]:
        count, best = 0, None
        for kept in self._kept:
            agreed = agreeing(kept.ids, ids)
            if agreed > count and can_shorten(self._spec, len(kept.ids), agreed):
                count, best = agreed, kept
        return count, best


def contains(spec: ModelSpec, ids: np.ndarray, stored: np.ndarray) -> bool:
    """Whether the state after `ids` has that after `stored`."""
    return agreeing(stored, ids) == len(stored) and can_shorten(spec, len(ids), len(stored))
