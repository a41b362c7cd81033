"""Formats whose 4-bit codes mean numbers of a table: weight = scale · table[code]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapinfer.quant.groups import Grouped, GroupFormat, SearchResult
from lapinfer.quant.search import best_scale, inverse, signed_half

REACHES = (1.0, 0.97, 0.94, 1.03)
"""Where a group's largest weight lies, in parts of the table's ends."""
ROUNDS = 2
"""Rounds of alternation: the best scale for the codes, the best codes for it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableFormat(GroupFormat):
    """table: 16 whole numbers −127 … 127 in rising order."""

    table: tuple[int, ...]

    def search(self, x: np.ndarray, w: np.ndarray | None, rows: int) -> SearchResult:
        """Of either sign, since the table's ends differ: the scales that put the largest weight near one of them."""
        table = np.array(self.table, np.float32)
        middles = (table[:-1] + table[1:]) / 2
        largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]

        def codes(scale: np.ndarray) -> np.ndarray:
            return np.searchsorted(middles, x * inverse(scale.astype(np.float32)))

        def values(scale: np.ndarray) -> np.ndarray:
            return table[codes(scale)]

        ends = (table[0], table[-1])
        scale = best_scale(x, w, (signed_half(largest * np.float32(r) / end) for r in REACHES for end in ends), values)
        for _ in range(ROUNDS):
            v = values(scale)
            weighed = v if w is None else w * v
            fitted = np.einsum("cn,cn->n", weighed, x) * inverse(np.einsum("cn,cn->n", weighed, v))
            scale = best_scale(x, w, (scale, signed_half(fitted)), values)
        return SearchResult(codes(scale).astype(np.uint8), scale)

    def weights(self, groups: Grouped) -> np.ndarray:
        return np.array(self.table, np.float32)[groups.codes] * groups.spread(groups.scale)
