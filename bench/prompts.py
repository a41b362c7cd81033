"""Prompts of a wanted length, cut from a text, for servers whose tokenizers are their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from stream_client import Client, Question

SHORT = "short"
SAMPLE = 4000
"""Characters by which tokens are counted."""


class Prompts:
    """Questions cut from a text at random places: none is the beginning of another. The same seed gives the same."""

    def __init__(self, path: Path, seed: int) -> None:
        self._text = " ".join(path.read_text(encoding="utf-8").split())
        self._random = Random(seed)
        self._characters, self._around = 4.0, 0

    async def measure(self, client: Client) -> None:
        """Ask the server how many characters a token has in this text, and how many tokens its template adds."""
        short = await client.prompt_tokens(self._text[: SAMPLE // 4])
        long = await client.prompt_tokens(self._text[:SAMPLE])
        self._characters = (SAMPLE - SAMPLE // 4) / (long - short)
        self._around = round(short - SAMPLE // 4 / self._characters)

    def question(self, kind: str, tokens: int, leave: int | None = None) -> Question:
        """kind: SHORT, or a number of tokens, of which a server will count nearly so many."""
        if kind == SHORT:
            return Question(kind, f"Tell me a long story about {self._passage(24)}.", tokens, leave)
        ask = "\n\nGo on with this story, at length."
        room = (int(kind) - self._around) * self._characters - len(ask)
        return Question(kind, self._passage(round(room)) + ask, tokens, leave)

    def mixed(self, kinds: list[str], count: int, tokens: int) -> Iterator[Question]:
        """So many questions, kind after kind."""
        for index in range(count):
            yield self.question(kinds[index % len(kinds)], tokens)

    def _passage(self, characters: int) -> str:
        start = self._text.index(" ", self._random.randrange(len(self._text) - characters - 100)) + 1
        return self._text[start : start + max(1, characters)]
