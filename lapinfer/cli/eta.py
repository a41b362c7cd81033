"""How fast a phase of long work goes, and when it will end, from counts that come at any time. No clock of its own."""

from __future__ import annotations

SOONEST = 1.0
"""Seconds before anything is foreseen."""
MEMORY = 10.0
"""Seconds, or half of what has passed if that is more, after which what was measured counts a third."""
PATIENCE = 0.1
"""An end that was foreseen stays as long as the newest estimate of what is left is not off by more than this share."""


class Pace:
    """The rate of a phase, over the time in which it was at work, and the end that is foreseen from it."""

    def __init__(self, done: float, total: float | None) -> None:
        self.done, self.total = done, total
        self.seconds = 0.0
        """At work so far, up to the last count."""
        self._work = self._time = 0.0
        self._gap = 0.0
        self._end: float | None = None

    @property
    def is_done(self) -> bool:
        return self.total is not None and self.done >= self.total

    @property
    def rate(self) -> float | None:
        """Units per second; None before it can be told."""
        return self._work / self._time if self._work > 0 and self._time > 0 else None

    def count(self, done: float, total: float | None, seconds: float) -> None:
        """So much is done now, after so many more seconds at work."""
        advance = done - self.done
        if advance < 0 or total != self.total:  # begun anew: of other work, nothing is known
            self._work = self._time = self._gap = 0.0
            self._end = None
        else:
            kept = 1 - min(seconds / max(MEMORY, self.seconds / 2), 1)
            self._work, self._time = kept * self._work + advance, kept * self._time + seconds
            self._gap = max(seconds, kept * self._gap) if advance else self._gap + seconds
        self.done, self.total = done, total
        self.seconds += seconds

    def left(self, since: float) -> float | None:
        """Seconds until the end, so many after the last count; None where that cannot be told.

        An end that was told once stays where it is until it would be wrong by much: it does not jump about. A count
        that is late makes it later.
        """
        if not self.rate or self.total is None or self.seconds + since < SOONEST:
            return None
        late = max(since - self._gap, 0.0)
        estimate = max((self.total - self.done) * (self._time + late) / self._work - since + late, 0.0)
        now = self.seconds + since
        if self._end is None or abs(now + estimate - self._end) > max(PATIENCE * estimate, SOONEST):
            self._end = now + estimate
        return max(self._end - now, 0.0)
