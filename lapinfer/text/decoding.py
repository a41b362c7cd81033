"""Decoding: the tokens of one generation, each chosen from the logits after all that come before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lapinfer.text.likelihood import SCORED_PIECE, Chosen
from lapinfer.text.sampling import Sampler
from lapinfer.text.scoring import PromptScores

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model

Banned = Callable[[Sequence[int]], Sequence[int]]
"""The ids that may not follow some ids."""
Allowed = Callable[[Sequence[int]], np.ndarray]
"""Whether each id, [V] bool, may follow some ids."""


class Piece(NamedTuple):
    """Neighbouring ids of a sequence that one step reads. complete: they end the sequence, so a token follows.

    wanted: after how many of them, the last ones, logits are looked at.
    """

    tokens: list[int]
    start: int
    complete: bool
    wanted: int


@dataclass(slots=True)
class Conversation:
    """What a slot's KV cache holds: the ids of positions 0, 1, …, and which generation wrote last."""

    ids: list[int] = field(default_factory=list)
    writer: object = None


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
        self._held = conversation.ids
        self._windows = [layer.window for layer in model.spec.layers if layer.window is not None]

    def next(self) -> Chosen:
        """Choose the next token, and append it to `ids`."""
        with self.model.lock:  # logits are views that the next step overwrites
            if self._scoring:
                return self._next_scored()
            return self.choose(self._run(self._kept()), 0)

    def due(self, most: int, most_wanted: int) -> Piece:
        """What a step reads next of `ids`, at most so many tokens; the model's lock is held from here to `ran`."""
        kept, scoring = self._kept(), self._scoring
        if scoring:
            most = min(most, most_wanted, SCORED_PIECE)
        tokens = self.ids[kept : kept + most]
        self._begin_reading()
        complete = kept + len(tokens) == len(self.ids)
        return Piece(tokens, kept, complete, len(tokens) if scoring else int(complete))

    def ran(self, piece: Piece, logits: Logits, row: int) -> None:
        """Note that a step read what was due; the logits that it wanted are those from `row` on."""
        self._end_reading(piece.tokens)
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
            window = min(self._windows, default=None)
            most = self.scores.read if self._scoring and self.scores is not None else len(self.ids) - 1
            del conversation.ids[_reusable(conversation.ids, self.ids[: most + 1], window) :]
            conversation.writer = self._writer
        if not self._began:
            self._began, self.reused = True, len(conversation.ids)
        return len(conversation.ids)

    def _run(self, kept: int, guesses: Sequence[int] = ()) -> Logits:
        """Logits after `ids`, of which the cache holds all but the last one or, of a prompt, more.

        guesses: tokens that may follow; logits after each of them, too, where the cache lacks but one of `ids`.
        """
        missing = self.ids[kept:]
        self._begin_reading()
        if len(missing) == 1:
            tokens = np.array([*missing, *guesses], np.int32)
            slots, positions = np.full(len(tokens), self.slot), np.arange(kept, kept + len(tokens))
            logits = self.model.step(
                tokens, slots, positions, np.ones(len(tokens), bool), best=self.needed(guesses),
                guessed=len(guesses) > 0,
            )  # fmt: skip
        else:
            logits = self.model.prefill(missing, self.slot, kept, best=self.needed())
        self.steps += 1
        self._end_reading(missing)
        return logits

    def _begin_reading(self) -> None:
        """Until the step has ended, a ring holds neither the old positions nor the new ones."""
        self._held = self.conversation.ids
        if self._windows:
            self.conversation.ids = []

    def _end_reading(self, tokens: Sequence[int]) -> None:
        self._held.extend(tokens)
        self.conversation.ids = self._held

    def needed(self, guesses: Sequence[int] = ()) -> int | None:
        """How many of the largest logits after `ids`, and after each guess, decide what comes next; None: all."""
        if self._scoring:
            return None
        most, ids = 0, [*self.ids] if guesses else self.ids
        for guess in (None, *guesses):
            if guess is not None:
                ids.append(guess)
            needed = self.sampler.needed(ids, self.banned(ids), self.allowed is not None)
            if needed is None:
                return None
            most = max(most, needed)
        return most

    def choose(self, logits: Logits, row: int) -> Chosen:
        """A token by one row of logits, appended to `ids`."""
        ids = self.ids
        allowed = None if self.allowed is None else self.allowed(ids)
        chosen = self.sampler.sample(logits.values[row], logits.block_max[row], ids, self.banned(ids), allowed)
        ids.append(chosen.token)
        return chosen


def shared(cached: Sequence[int], ids: Sequence[int]) -> int:
    """How many of `ids` begin `cached`, too, but for the last one, which is always read again, for its logits."""
    most = min(len(cached), len(ids) - 1)
    return next((i for i in range(most) if cached[i] != ids[i]), most)


def _reusable(cached: list[int], ids: list[int], window: int | None) -> int:
    """How many of `ids` can stay in the KV cache."""
    common = shared(cached, ids)
    if window is not None and len(cached) > window and common < len(cached) - 1:
        return 0  # a ring (a window's keys, a convolution's inputs) has overwritten what stepping back would need
    return common
