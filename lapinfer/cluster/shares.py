"""How many engines a cluster gets, and how many threads each: from what was asked for, and from its CPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lapinfer.errors import DoesNotFitError, InputError


@dataclass(frozen=True, slots=True)
class Range:
    """A number of engines, or between which two it may be: as work comes, the cluster has more or fewer."""

    least: int
    most: int

    @classmethod
    def parsed(cls, name: str, text: str) -> Range:
        """Of N or MIN:MAX; InputError that names the option."""
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text.strip())
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise InputError(f"{name}: expected a whole number from 1, or MIN:MAX, got {text!r}")
        return cls(least, most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}:{self.most}"


def shares(cpus: Sequence[int], engines: Range | None, threads: int | None, name: str) -> tuple[Range, int]:
    """(engines, threads of each) on nodes with so many CPUs; what is None is chosen.

    By default an engine has all CPUs of the smallest node, and there are as many engines as then fit: fewer engines
    with more threads read weights fewer times. DoesNotFitError where the least number of engines has no room; `name`
    is that of the option that asked for them.
    """
    if threads is None:
        least = 1 if engines is None else engines.least
        most = min(cpus) if engines is None else max(cpus)
        threads = next((count for count in range(most, 0, -1) if _room(cpus, count) >= least), 1)
    room = _room(cpus, threads)
    if engines is None:
        engines = Range(max(room, 1), max(room, 1))
    if engines.least > room:
        plural = f"{engines.least} engines" if engines.least > 1 else "an engine"
        nodes = ", ".join(map(str, cpus))
        raise DoesNotFitError(
            f"{name}: {plural} of {threads} threads found no room on nodes with {nodes} CPUs, which hold {room}; "
            "ask for fewer, or for fewer threads"
        )
    return Range(engines.least, min(engines.most, room)), threads


def _room(cpus: Sequence[int], threads: int) -> int:
    """Engines of so many threads that fit: an engine lies on one node."""
    return sum(count // threads for count in cpus)
