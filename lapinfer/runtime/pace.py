"""How many threads take part in the next step: learned from the times of the last ones.

On a laptop other programs come and go. With them about, a second thread may cost more than it brings (it is
descheduled holding a chunk that the others wait for), so single-token steps are tried with fewer threads when steps
have become slow. Results never depend on the choice.
"""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 5
"""Steps whose median is a thread count's current speed."""
FIRST_TRIAL, LONGEST_WAIT = 24, 384
"""Steps until the alternative is tried again; doubled each time it loses, up to LONGEST_WAIT."""


class Pace:
    """Chooses the number of active threads, 1 … threads, for steps of one token each; prompts use them all."""

    def __init__(self, threads: int):
        self.threads = threads
        self.best = threads
        self._times: dict[int, deque[int]] = {}
        self._usual = 0.0
        self._wait = FIRST_TRIAL
        self._until_trial = FIRST_TRIAL
        self._trial: list[int] = []

    def choose(self, tokens: int) -> int:
        if tokens > 1 or self.threads == 1:
            return self.threads
        return self._trial[0] if self._trial else self.best

    def record(self, tokens: int, active: int, ns: int) -> None:
        """Learn from a step's time; begins and ends trials."""
        if tokens > 1 or self.threads == 1:
            return
        self._times.setdefault(active, deque(maxlen=WINDOW)).append(ns)
        if self._trial:
            self._trial.pop(0)
            if not self._trial:
                self._judge()
            return
        self._until_trial -= 1
        current = median(self._times[active])
        disturbed = self._usual and current > 1.3 * self._usual and len(self._times[active]) == WINDOW
        if disturbed:
            self._wait = FIRST_TRIAL
        if self._until_trial <= 0 or (disturbed and self._until_trial > FIRST_TRIAL):
            others = [n for n in {self.threads, max(self.best // 2, 1), min(self.best * 2, self.threads)}]
            self._trial = [n for n in others if n != self.best for _ in range(WINDOW)]
            for n in set(self._trial):
                self._times.pop(n, None)
            if not self._trial:
                self._judge()

    def _judge(self) -> None:
        speeds = {n: median(times) for n, times in self._times.items() if len(times) == WINDOW}
        fastest = min(speeds, key=speeds.__getitem__, default=self.best)
        self._wait = FIRST_TRIAL if fastest != self.best else min(2 * self._wait, LONGEST_WAIT)
        self.best, self._usual = fastest, speeds.get(fastest, 0.0)
        self._until_trial = self._wait
