"""Times that are taken turn by turn, A B C A B C: whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence


def interleaved(seconds: Mapping[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """What each function gives in `rounds` rounds, after `warm_up` that are not counted."""
    found: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(warm_up + rounds):
        for name, function in seconds.items():
            value = function()
            if turn >= warm_up:
                found[name].append(value)
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median, the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")
