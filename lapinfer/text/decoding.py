"""Decoding: the tokens of one generation, each chosen from the logits after all that come before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from lapinfer.errors import LapinferError
from lapinfer.text.likelihood import SCORED_PIECE, Chosen
from lapinfer.text.sampling import Sampler
from lapinfer.text.scoring import PromptScores

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model

Banned = Callable[[Sequence[int]], Sequence[int]]
"""The ids that may not follow some ids."""
STRETCH = 256
"""Ids that are compared at once."""


class Piece(NamedTuple):
    """Neighbouring ids of a sequence that one step reads. complete: they end the sequence, so a token follows.

    wanted: after how many of them, the last ones, logits are looked at. guesses: of what follows, which the step reads,
    too, and whose logits are looked at.
    """

    tokens: list[int]
    start: int
    complete: bool
    wanted: int
    guesses: Sequence[int] = ()


class Allowed(Protocol):
    """The ids that may follow some ids: as in `model.Allowed`, and [V] bool."""

    def bits(self, ids: Sequence[int]) -> np.ndarray: ...

    def allowed(self, ids: Sequence[int]) -> np.ndarray: ...


class Beginnings(Protocol):
    """Where a slot finds the beginning of a text that was read before, and leaves what it has read."""

    def bring(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        """Let a slot hold what there is of the beginning of `ids`, at most so many, and its conversation say so.

        Returns the counts of ids after which `keep` is to be called.
        """
        ...

    def keep(self, slot: int) -> None:
        """Keep what a slot holds, if it is worth it."""
        ...


@dataclass(slots=True)
class Conversation:
    """What a slot's KV cache holds: the ids of positions 0, 1, …, and which generation wrote last.

    beginnings: where else to look for those of a text; None: what this slot holds is all there is.
    """

    ids: list[int] = field(default_factory=list)
    writer: object = None
    beginnings: Beginnings | None = None


class Decoding:
    """A sequence that grows by a token at each `next`, which runs a step of the model; or at each `choose`, after steps
    that somebody else runs with what is `due`, and with other sequences.

    ids: the prompt's, and those that were chosen. reused: how many ids the slot's KV cache held when the first step
    began. steps: how many were run, all of the prompt's as one. drafted, kept: tokens that were guessed, and those of
    them that were right.
    """

    def __init__(
        self, model: Model, slot: int, conversation: Conversation, ids: Sequence[int], sampler: Sampler, banned: Banned,
        allowed: Allowed | None = None, scores: PromptScores | None = None,
    ) -> None:  # fmt: skip
        self.model, self.slot, self.conversation = model, slot, conversation
        self.ids, self.sampler, self.banned, self.allowed = list(ids), sampler, banned, allowed
        self.scores = scores
        self.reused = self.steps = self.drafted = self.kept = 0
        self._began, self._writer = False, object()
        self._refused: LapinferError | None = None
        self._stops: list[int] = []
        """Counts of ids after which a step ends, and what the slot then holds is kept; in their order."""

    def next(self) -> Chosen:
        """Choose the next token, and append it to `ids`."""
        with self.model.lock:  # logits are views that the next step overwrites
            if self._scoring:
                return self._next_scored()
            return self.choose(self._run(self._kept()), 0)

    def begin(self) -> int:
        """Let the slot hold what need not be read of `ids`; how many, but for the last one. The lock is held."""
        return self._kept()

    def due(self, most: int, most_wanted: int) -> Piece:
        """What a step reads next of `ids`, at most so many tokens; the model's lock is held from here to `ran`."""
        kept, scoring = self._kept(), self._scoring
        if scoring:
            most = min(most, most_wanted, SCORED_PIECE)
        tokens = self.ids[kept : min(kept + most, self._stop(kept))]
        complete = kept + len(tokens) == len(self.ids)
        return Piece(tokens, kept, complete, len(tokens) if scoring else int(complete))

    def ran(self, piece: Piece, logits: Logits, row: int) -> None:
        """Note that a step read what was due; the logits that it wanted are those from `row` on."""
        self._read(piece.tokens)
        self.steps += piece.complete
        if self._scoring and self.scores is not None:
            self.scores.note(piece.start, piece.wanted, logits, row)

    @property
    def _scoring(self) -> bool:
        return self.scores is not None and self.scores.missing

    def _next_scored(self) -> Chosen:
        """Read and score the prompt, then choose."""
        model = self.model
        while True:
            piece = self.due(model.max_step, model.max_wanted)
            n = len(piece.tokens)
            slots, positions = np.full(n, self.slot), piece.start + np.arange(n)
            logits = model.step(np.array(piece.tokens, np.int32), slots, positions, np.ones(n, bool))
            self.ran(piece, logits, 0)
            if piece.complete:
                return self.choose(logits, n - 1)

    @property
    def position(self) -> int:
        """How many of `ids` its slot holds."""
        return len(self.conversation.ids) if self.conversation.writer is self._writer else 0

    def stop_at(self, count: int) -> None:
        """Let a step end after so many ids, if it has not read them: what the slot then holds can be copied."""
        if count < len(self.ids):
            self._stops = sorted({*self._stops, count})

    def go_on(self, ids: Sequence[int], agreed: int) -> None:
        """Go on after other ids; both are known to begin with the same `agreed` ones."""
        most = min(len(ids), len(self.ids))
        common = next((i for i in range(agreed, most) if self.ids[i] != ids[i]), most)
        self.ids[common:] = ids[common:]
        if self.conversation.writer is self._writer:
            del self.conversation.ids[min(common, len(ids) - 1) :]

    def _kept(self) -> int:
        """Keep of the slot's KV cache what `ids` begin with, but for the last one: returns how many."""
        conversation = self.conversation
        # Its own earlier tokens are a prefix of `ids`: no need to compare.
        if conversation.writer is not self._writer:
            most = self.scores.read if self._scoring and self.scores is not None else len(self.ids) - 1
            if conversation.beginnings is None:
                del conversation.ids[reusable(self.model, self.slot, conversation.ids, self.ids[: most + 1]) :]
            else:
                self._stops = sorted({*self._stops, *conversation.beginnings.bring(self.slot, self.ids, most)})
            conversation.writer = self._writer
        if not self._began:
            self._began, self.reused = True, len(conversation.ids)
        return len(conversation.ids)

    def _stop(self, kept: int) -> int:
        """Where a step that begins after so many ids ends at last."""
        return next((stop for stop in self._stops if stop > kept), len(self.ids))

    def _run(self, kept: int, guesses: Sequence[int] = ()) -> Logits:
        """Logits after `ids`, of which the cache holds all but the last one or, of a prompt, more.

        guesses: tokens that may follow; logits after each of them, too, where the cache lacks but one of `ids`.
        """
        while (stop := self._stop(kept)) < len(self.ids):
            self.model.prefill(self.ids[kept:stop], self.slot, kept, best=1)
            self._read(self.ids[kept:stop])
            kept = stop
        missing = self.ids[kept:]
        if len(missing) == 1:
            tokens = np.array([*missing, *guesses], np.int32)
            slots, positions = np.full(len(tokens), self.slot), np.arange(kept, kept + len(tokens))
            logits = self.model.step(
                tokens, slots, positions, np.ones(len(tokens), bool), best=self.needed(guesses),
                guessed=len(guesses) > 0, allowed=[self.bits(), *[None] * len(guesses)],
            )  # fmt: skip
        else:
            logits = self.model.prefill(missing, self.slot, kept, best=self.needed(), allowed=[self.bits()])
        self.steps += 1
        self._read(missing)
        return logits

    def _read(self, tokens: Sequence[int]) -> None:
        """Note that the slot holds these, too, and have it kept where that was asked for."""
        conversation = self.conversation
        conversation.ids.extend(tokens)
        while self._stops and self._stops[0] <= len(conversation.ids):
            if self._stops.pop(0) == len(conversation.ids) and conversation.beginnings is not None:
                conversation.beginnings.keep(self.slot)

    def needed(self, guesses: Sequence[int] = ()) -> int | None:
        """How many of the largest logits after `ids`, and after each guess, decide what comes next; None: all."""
        if self._scoring:
            return None
        most, ids = 0, [*self.ids] if guesses else self.ids
        for guess in (None, *guesses):
            if guess is not None:
                ids.append(guess)
            needed = self.sampler.needed(ids, self.banned(ids))
            if needed is None:
                return None
            most = max(most, needed)
        return most

    def bits(self) -> np.ndarray | None:
        """Which ids may follow `ids`, as in `model.Allowed`."""
        if self.allowed is None:
            return None
        self._refused = None
        try:
            return self.allowed.bits(self.ids)
        except LapinferError as error:
            self._refused = error  # raised by `choose`, when no one else is in the middle of a step
            return None

    def checked(self, logits: Logits, row: int, guesses: Sequence[int]) -> list[Chosen]:
        """The tokens that a step brings which has run guesses, too: logits from `row` on are those after each."""
        return [self.choose(logits, row)]

    def choose(self, logits: Logits, row: int) -> Chosen:
        """A token by one row of logits, appended to `ids`."""
        ids = self.ids
        if self._refused is not None:
            raise self._refused
        allowed = None if self.allowed is None or logits.masked else self.allowed.allowed(ids)
        values, block_max, masked = logits.values[row], logits.block_max[row], logits.masked
        chosen = self.sampler.sample(values, block_max, ids, self.banned(ids), allowed, masked)
        ids.append(chosen.token)
        return chosen


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    most = min(len(one), len(other))
    for start in range(0, most, STRETCH):
        a, b = one[start : min(start + STRETCH, most)], other[start : min(start + STRETCH, most)]
        if a != b:  # in one go, which is much quicker than one by one; another thread may have shortened one meanwhile
            return start + next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return most


def shared(cached: Sequence[int], ids: Sequence[int]) -> int:
    """How many of `ids` begin `cached`, too, but for the last one, which is always read again, for its logits."""
    return min(common(cached, ids), max(len(ids) - 1, 0))


def reusable(model: Model, slot: int, cached: Sequence[int], ids: Sequence[int]) -> int:
    """How many of `ids` can stay in a slot that holds `cached`: 0 where a ring has lost what stepping back takes."""
    count = shared(cached, ids)
    return count if model.continues(slot, count) else 0
