"""Figures of a batch, as its lines are done."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lapinfer.batch.records import Answered


class Sums:
    """lines: that are done; failed: of these, told as errors; read, made: tokens of prompts and of answers."""

    def __init__(self) -> None:
        self.lines = self.failed = self.read = self.made = 0
        self._named = array("Q")
        self.first: Answered | None = None
        """Of those that failed, the first in the input."""

    def add(self, done: Answered) -> None:
        self.lines += 1
        self.failed += done.failed
        self.read += done.read
        self.made += done.made
        if done.failed and (self.first is None or done.number < self.first.number):
            self.first = done
        if done.named:
            self._named.append(done.named)

    def repeated(self) -> int:
        """Lines whose custom_id another line has as well."""
        import numpy as np

        _, counts = np.unique(np.array(self._named, np.uint64), return_counts=True)
        return int(counts[counts > 1].sum())
