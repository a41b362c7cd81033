"""What a step of several tokens takes, learned while steps run; and how many guesses are worth a longer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from operator import mul

NEWEST = 0.25
"""Share of the newest step in the mean of those of its length."""
OUTLIER = 2.0
"""A step counts as at most so many usual ones: something else had the processor."""
HALF_LIFE = 2048
"""Steps after which what was learned of a length that was not run counts half, so that it is tried again."""
RENEWED = 16
"""Steps of one token after which times are computed anew."""
GAIN = 1.05
"""Guesses must promise so many times the tokens per second of a step without them."""
UNLIKELY = 0.02
"""Chance below which a guess, and those after it, are not thought about."""
CAREFUL = 1.5
"""As GAIN, once guesses of a text have cost what they may."""
FREE = 1.0
"""What guesses of a text may cost at first, in steps of one token …"""
SHARE = 0.01
"""… and what they may cost more for each token that was said since."""


class StepTimes:
    """Seconds of steps of 1 … `most` tokens.

    expected: a step's time by its number of tokens, in steps of one token, where nothing was measured yet. What is
    learned is how many times as long steps take; between measured lengths, and beyond, that is taken to be alike.
    """

    def __init__(self, expected: Callable[[int], float], most: int) -> None:
        self._expected, self._most = expected, most
        self._seconds: dict[int, float] = {}
        self._when: dict[int, int] = {}
        self._steps = self._renewed = 0
        self._ratios: list[float] = []  # of 0, 1, … tokens, to a step of one
        self._expectations: list[float] = []

    def record(self, tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if (usual := self._seconds.get(tokens)) is not None:
            seconds = usual + NEWEST * (min(seconds, OUTLIER * usual) - usual)
        elif self.known:
            seconds = min(seconds, OUTLIER * self.seconds(tokens))
        self._seconds[tokens] = seconds
        self._steps += 1
        self._when[tokens] = self._steps
        if tokens > 1:
            self._ratios = []

    @property
    def known(self) -> bool:
        """Whether a step of one token was measured, without which nothing is known."""
        return 1 in self._seconds

    def seconds(self, tokens: int) -> float:
        """What a step of so many tokens is thought to take."""
        if not self._ratios or self._steps >= self._renewed + RENEWED:
            self._ratios, self._renewed = self._renew(), self._steps
        return self._seconds[1] * self._ratios[tokens]

    def steps(self, tokens: int) -> float:
        """The same in steps of one token, 1 while nothing is known."""
        return self.seconds(tokens) / self.seconds(1) if tokens > 1 and self.known else 1.0

    def _renew(self) -> list[float]:
        expected = self._expectations
        if not expected:
            expected += [1.0, 1.0, *(self._expected(n) for n in range(2, self._most + 1))]
        one, slower = self._seconds[1], [1.0] * len(expected)
        measured = sorted(self._seconds)
        for n in measured[1:]:
            age = (self._steps - self._when[n]) / HALF_LIFE
            slower[n] = (self._seconds[n] / (one * expected[n])) ** 0.5**age
        for low, high in pairwise(measured):
            for n in range(low + 1, high):
                slower[n] = slower[low] + (n - low) / (high - low) * (slower[high] - slower[low])
        for n in range(measured[-1] + 1, len(expected)):
            slower[n] = slower[measured[-1]]
        return [a * b for a, b in zip(expected, slower, strict=True)]


class Balance:
    """What the guesses of a text have cost and brought: chances are estimates, and no text may pay for their errors."""

    def __init__(self) -> None:
        self._lost = 0.0  # in steps of one token
        self._tokens = 0

    def record(self, steps: float, tokens: int) -> None:
        """Count a step that took as long as so many of one token, and brought so many tokens."""
        self._lost += steps - tokens
        self._tokens += tokens

    @property
    def gain(self) -> float:
        """What more guesses must promise, as GAIN."""
        return GAIN if self._lost <= FREE + SHARE * self._tokens else CAREFUL


def worth(shares: Sequence[float], seconds: Callable[[int], float], gain: float = GAIN) -> tuple[int, float]:
    """How many guesses give the most tokens per second, and how many these are; 0 where a step without them does.

    shares: the chance of each guess if those before it were right; seconds: of a step with so many guesses; gain: how
    many times the tokens per second of a step without them they must promise.
    """
    return most_worth(accumulate(shares, mul), seconds, gain)


def most_worth(
    chances: Iterable[float], seconds: Callable[[int], float], gain: float = GAIN, tokens: float = 1.0
) -> tuple[int, float]:
    """`worth`, of a step that brings so many tokens without guesses; chances: that of each guess, the best first."""
    best, rate = 0, tokens / seconds(0)
    wanted = gain * rate
    for count, chance in enumerate(chances, 1):
        if chance < UNLIKELY:
            break
        tokens += chance
        promised = tokens / seconds(count)
        if promised > wanted:
            best, rate, wanted = count, promised, promised
    return best, rate
