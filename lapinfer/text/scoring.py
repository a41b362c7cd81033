"""How likely the tokens of a prompt are: noted as its pieces are read, the logits of a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lapinfer.text.likelihood import Chosen, Top, judged

if TYPE_CHECKING:
    from lapinfer.model import Logits


@dataclass(frozen=True, slots=True)
class Scored:
    """Token ids of a text; the natural log-probability of each after those before it, None for the first, which follows
    nothing; and for each the most likely tokens in its place, as in `Token.top`."""

    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[Top, ...]

    @property
    def total(self) -> float:
        """The log-probability of all tokens after the first."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)


def scored(prompt: Sequence[Chosen]) -> Scored:
    """What the first event of a request with `prompt_logprobs` tells of its prompt (`Token.prompt`)."""
    return Scored(
        tuple(each.token for each in prompt), tuple(each.logprob for each in prompt), tuple(each.top for each in prompt)
    )


class PromptScores:
    """The tokens of one prompt, `found` as far as it was read. top: how many of the most likely are told in each place.

    Logits are wanted after every position, so no position counts as read that another generation left in the cache.
    """

    def __init__(self, ids: Sequence[int], top: int) -> None:
        self._ids, self._top = list(ids), top
        self.found = [Chosen(self._ids[0])]

    @property
    def missing(self) -> bool:
        """Whether some are not found yet."""
        return len(self.found) < len(self._ids)

    @property
    def read(self) -> int:
        """Positions whose logits were looked at."""
        return len(self.found) - 1

    def note(self, start: int, count: int, logits: Logits, row: int) -> None:
        """Look at the logits after so many positions from `start` on, which are those from `row` on."""
        for position in range(self.read, min(start + count, len(self._ids) - 1)):
            at = row + position - start
            self.found.append(judged(self._ids[position + 1], logits.values[at], logits.block_max[at], self._top))
