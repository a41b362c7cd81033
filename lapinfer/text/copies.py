"""Guesses of what comes next, taken from where the same tokens stood before: in the prompt, or in the answer so far.

A place is found by runs of the last tokens (prompt lookup: Saxena, github.com/apoorvumang/prompt-lookup-decoding), and
followed while the text agrees with it. After a difference the text is looked for a few tokens further on: that is what
an edited copy does. Nothing is searched again: a token costs some microseconds, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

RUNS = (8, 4, 2)
"""Lengths of the runs of tokens that are looked up, the longest first."""
SURE = 16
"""Tokens in a row that agreed from which more make no difference."""
NEAR = 8
"""Tokens after a difference within which a copy may go on; and tokens of the text until that is given up."""
FOUND = (0.1, 0.3, 0.45, 0.55, 0.62, 0.68, 0.74, 0.8, 0.85, 0.89, 0.92, 0.94, 0.95, 0.96, 0.97, 0.97)
RESUMED = (0.4, 0.6, 0.7, 0.76, 0.81, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.96, 0.97, 0.97, 0.97)
"""What is taken for the share of right guesses at first, by how many tokens in a row agreed: 1, 2, … SURE."""


class Odds:
    """Shares of guesses that were right, by kind: a number that says how sure a guess seemed.

    Learned from first shares, which count as `weight` guesses; older guesses count less and less.
    """

    KEPT = 0.97

    def __init__(self, first: Sequence[float], weight: float = 8.0) -> None:
        self._right = [weight * share for share in first]
        self._all = [weight] * len(self._right)

    def __getitem__(self, kind: int) -> float:
        return self._right[kind] / self._all[kind]

    def record(self, kind: int, right: bool) -> None:
        self._right[kind] = self.KEPT * self._right[kind] + right
        self._all[kind] = self.KEPT * self._all[kind] + 1


class Copies:
    """The tokens of a text, and the place before their end that is most likely to go on as they do.

    A kind of `odds` is a place's run of tokens that agreed: 0 is one token, up to SURE; SURE is one token behind a
    difference, and so on.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.odds = Odds(FOUND + RESUMED)
        self._ids = list(ids[:-1])
        self._last: dict[tuple[int, ...], int] = {}  # of each run of tokens, where it ended last
        for n in RUNS:
            runs = zip(*(self._ids[i:] for i in range(n)), strict=False)
            self._last.update(zip(runs, range(n - 1, len(self._ids)), strict=False))
        self._at, self._kind = -1, 0  # the place whose next token is the guess, or −1
        self._left, self._near = -1, 0  # where the text differed from a place, and for how long that matters
        if ids:
            self.push(ids[-1])

    def extend(self, ids: Sequence[int]) -> None:
        """Add what a text has more than this one, which it begins with."""
        for token in ids[len(self._ids) :]:
            self.push(token)

    def push(self, token: int) -> None:
        """Add the next token of the text."""
        ids, at = self._ids, self._at
        if at >= 0:
            right = ids[at + 1] == token
            self.odds.record(self._kind, right)
            if right:
                self._at, self._kind = at + 1, _longer(self._kind)
            else:
                if self._kind % SURE:  # one token that agreed may have been chance
                    self._left, self._near = at, NEAR
                self._at = -1
        ids.append(token)
        self._search()
        self._near -= 1

    def _search(self) -> None:
        """Note where the last tokens stand, and go to a better place if there is one."""
        ids, last, end, found = self._ids, self._last, len(self._ids) - 1, -1
        for n in RUNS:
            if n > end + 1:
                continue
            run = tuple(ids[-n:])
            if found < 0:
                found = last.get(run, -1)
            last[run] = end
        if self._at >= 0 and self._kind % SURE >= RUNS[0]:
            return
        if found >= 0:
            self._consider(found, min(_agreeing(ids, found, end), SURE) - 1)
        if self._near > 0:
            stop = min(self._left + 1 + NEAR, end)
            again = next((i for i in range(self._left + 1, stop) if ids[i] == ids[end]), -1)
            if again >= 0:
                self._consider(again, SURE)

    def _consider(self, place: int, kind: int) -> None:
        if self._at < 0 or self.odds[kind] > self.odds[self._kind]:
            self._at, self._kind = place, kind

    def shares(self, most: int) -> list[float]:
        """Of so many guesses, the chance of each if those before it were right; [] if there are none."""
        if self._at < 0:
            return []
        shares, kind = [], self._kind
        for _ in range(most):
            shares.append(self.odds[kind])
            kind = _longer(kind)
        return shares

    def guesses(self, count: int) -> list[int]:
        """The next tokens after the place; where the text ends, it goes on as it does from the place on."""
        first = self._at + 1
        period = len(self._ids) - first
        return [self._ids[first + i % period] for i in range(count)]


def _longer(kind: int) -> int:
    """The kind of a place that has agreed once more."""
    return kind + 1 if kind % SURE < SURE - 1 else kind


def _agreeing(ids: list[int], place: int, end: int) -> int:
    """How many tokens up to `place` are those up to `end`, at most SURE."""
    count = 0
    while count < SURE and count <= place and ids[place - count] == ids[end - count]:
        count += 1
    return count
