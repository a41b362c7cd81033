"""How many threads take part in the next step: learned from the times of the last ones.

On a laptop other programs come and go. While they run, one more thread may cost more than it brings (it is descheduled
while it holds a chunk that the others wait for), so steps of one token are now and then tried with one thread fewer or
more. A trial is paid from a budget: a small share of the time that has passed since the last trials. Its expected cost
is known from the last trial of that number, so a promising trial happens at once, an unpromising one rarely. Results
never depend on the choice.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

WINDOW = 8
"""Steps whose mean time is the current speed."""
TRIAL = 4
"""Steps of a trial; it ends sooner when it cannot win any more."""
BUDGET = 0.005
"""Share of the time that trials may cost."""
SAVED_STEPS = 16
"""At most this many steps' time is saved up, so that a quiet hour does not pay for a restless minute."""
DISTURBED = 1.2
"""Ratio of the mean to the fastest step from which other programs are suspected."""
OUTLIER = 4
"""A step counts as at most this many usual ones: a computer that slept for an hour says nothing about threads."""
GAIN = 0.95
"""One more thread must bring a step's time below this share; one thread fewer need only be no slower."""


class Pace:
    """Chooses the number of active threads, 1 … threads, for steps of one token each; prompts use them all."""

    def __init__(self, threads: int):
        self.threads = threads
        self.best = threads
        self._recent: deque[int] = deque(maxlen=WINDOW)
        self._times: dict[int, float] = {}
        self._saved = 0.0
        self._trial = 0
        self._trial_times: list[int] = []
        self._direction = -1

    def choose(self, tokens: int) -> int:
        return self.threads if tokens > 1 else self._trial or self.best

    def record(self, tokens: int, active: int, ns: int) -> None:
        """Learn from a step's time; begin and end trials."""
        if tokens > 1 or self.threads == 1:
            return
        if self._trial:
            self._trial_times.append(min(ns, round(OUTLIER * self._times[self.best])))
            # When the time that the usual number needs for a trial is spent, it cannot win.
            if len(self._trial_times) == TRIAL or sum(self._trial_times) > TRIAL * self._times[self.best]:
                self._judge()
            return
        self._recent.append(min(ns, OUTLIER * min(self._recent, default=ns)))
        mean = sum(self._recent) / len(self._recent)
        self._saved = min(self._saved + BUDGET * ns, SAVED_STEPS * mean)
        if len(self._recent) == WINDOW:
            self._times[self.best] = mean
            self._consider(mean)

    def _consider(self, mean: float) -> None:
        """Begin a trial of a neighbouring number when the budget allows it."""
        for step in (self._direction, -self._direction):
            number = self.best + step
            if 1 <= number <= self.threads and self._expected_cost(number, mean) <= self._saved:
                self._trial, self._trial_times = number, []
                return

    def _expected_cost(self, number: int, mean: float) -> float:
        """Nanoseconds that a trial of `number` threads would lose."""
        if number in self._times:  # at most what can be saved: conditions may have changed since
            return min(TRIAL * max(self._times[number] - mean, 0.0), SAVED_STEPS * mean)
        fastest = min(self._recent)
        if mean > DISTURBED * fastest and self._saved >= 0:
            return 0.0
        return TRIAL * max(fastest * self.best / number - mean, 0.0)

    def _judge(self) -> None:
        """End the trial; its number is kept if it was faster."""
        usual, tried = self._times[self.best], fmean(self._trial_times)
        self._times[self._trial] = tried
        self._saved -= max(sum(self._trial_times) - len(self._trial_times) * usual, 0.0)
        won = tried < usual * (GAIN if self._trial > self.best else 1.0)
        step = self._trial - self.best
        self._direction = step if won else -step
        if won:
            self.best = self._trial
        self._trial = 0
        self._recent.clear()
