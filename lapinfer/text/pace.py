"""How much of prompts a step reads beside the next tokens of others: as much as these wait for, by measured times."""

from __future__ import annotations

from dataclasses import dataclass

GAP = 3.0
"""How many times as long as without prompts a step with them may take."""
LONGEST = 0.25
"""Seconds of a step of prompts alone: nobody who comes, or leaves, waits longer; …"""
MANY = 64
"""… and the tokens that it reads at least, for which weights are worth reading."""
FIRST = 8
"""Tokens of prompts where it was never measured what they take …"""
LEAST = 4
"""… and that are read however long they take, since every prompt must come to its end."""
AGAIN = 32
"""Steps with prompts after which one without is run, to see what that takes now."""
NEWEST = 0.15
"""Share of the newest step in a mean."""
OUTLIER = 2.0
"""A step counts as at most so many usual ones: something else had the processor."""


@dataclass(slots=True)
class _Plain:
    """Steps without prompts. seconds: of one; prompts: how many steps with prompts were run before the last of them."""

    seconds: float
    prompts: int


class Pace:
    """Learns what steps take by how many sequences decode in them, and what each token of a prompt adds."""

    def __init__(self) -> None:
        self._plain: dict[int, _Plain] = {}
        self._prompts = 0
        self._alone: float | None = None  # seconds for each token of steps of prompts alone
        # Means of both, whose ratio is what a token adds: a mean of ratios would be one of short pieces' noise.
        self._added = self._read = 0.0

    def record(self, decoding: int, prompt: int, seconds: float) -> None:
        """Learn from a step in which so many sequences decoded, and so many tokens of prompts were read."""
        plain = self._plain.get(decoding)
        if not prompt:
            if plain is not None:
                seconds = plain.seconds + NEWEST * (min(seconds, OUTLIER * plain.seconds) - plain.seconds)
            self._plain[decoding] = _Plain(seconds, self._prompts)
        elif plain is not None:
            self._prompts += 1
            if self._read:
                seconds = min(seconds, OUTLIER * (plain.seconds + max(self._token, 0.0) * prompt))
            share = NEWEST if self._read else 1.0
            self._added += share * (seconds - plain.seconds - self._added)
            self._read += share * (prompt - self._read)
        elif not decoding:
            usual = self._alone or seconds / prompt
            self._alone = usual + NEWEST * (min(seconds / prompt, OUTLIER * usual) - usual)
            if not self._read:
                self._added, self._read = seconds, float(prompt)

    def room(self, decoding: int) -> int:
        """Tokens of prompts in a step in which so many sequences decode; 0 where one without is due."""
        if not decoding:
            return max(MANY, int(LONGEST / self._alone)) if self._alone else MANY
        plain = self._plain.get(decoding)
        if plain is None or self._prompts - plain.prompts >= AGAIN:
            return 0
        if not self._read:
            return FIRST
        most = (GAP - 1) * plain.seconds
        return max(LEAST, int(most / max(self._token, most / (4 * self._read))))  # no leaps: times are noisy

    @property
    def _token(self) -> float:
        return self._added / self._read
