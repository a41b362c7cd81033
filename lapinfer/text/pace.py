"""How much of prompts a step reads beside the next tokens of others: as much as these wait for, by measured times."""

from __future__ import annotations

GAP = 3.0
"""How many times as long as without prompts a step with them may take."""
FIRST = 8
"""Tokens of prompts where it was never measured what they take …"""
LEAST = 4
"""… and that are read however long they take, since every prompt must come to its end."""
NEWEST = 0.25
"""Share of the newest step in a mean."""
OUTLIER = 2.0
"""A step counts as at most so many usual ones: something else had the processor."""


class Pace:
    """Learns what steps take by how many sequences decode in them, and what each token of a prompt adds."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of steps without prompts
        self._token: float | None = None

    def record(self, decoding: int, prompt: int, seconds: float) -> None:
        """Learn from a step in which so many sequences decoded, and so many tokens of prompts were read."""
        if not prompt:
            self._plain[decoding] = _mean(self._plain.get(decoding), seconds)
        elif decoding in self._plain:
            self._token = _mean(self._token, max(seconds - self._plain[decoding], 0.0) / prompt)
        elif not decoding and self._token is None:
            self._token = seconds / prompt

    def room(self, decoding: int) -> int:
        """Tokens of prompts in a step in which so many sequences decode, one or more.

        None where a step without prompts was never measured: it is, then.
        """
        if decoding not in self._plain:
            return 0
        if not self._token:
            return FIRST
        return max(LEAST, int((GAP - 1) * self._plain[decoding] / self._token))


def _mean(usual: float | None, newest: float) -> float:
    if usual is None:
        return newest
    return usual + NEWEST * (min(newest, OUTLIER * usual) - usual)
