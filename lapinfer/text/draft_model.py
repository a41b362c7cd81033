"""Guesses by a smaller model with the same tokens, which reads the same text and samples with the same random numbers.

Where both models find the same tokens likely, the same random number chooses the same token: more guesses are right
than if the smaller model's most likely token were taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from lapinfer.errors import InputError, UnsupportedError
from lapinfer.options import SamplingParams
from lapinfer.text.copies import Odds
from lapinfer.text.decoding import Banned, Conversation, Decoding
from lapinfer.text.likelihood import Chosen
from lapinfer.text.sampling import Sampler
from lapinfer.text.step_times import StepTimes, worth

if TYPE_CHECKING:
    from lapinfer.model import Model
    from lapinfer.text.tokenizer import Tokenizer

LIKELY = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Probabilities that divide the smaller model's tokens by how sure it was."""
FIRST = (0.2, 0.4, 0.6, 0.75, 0.88, 0.96, 0.7)
"""What is taken for the share of right guesses at first: of those below and between these, of sure ones, and of all."""
ANY = len(FIRST) - 1
AGAIN = 64
"""Steps after which a model that guessed badly is asked again; twice as many each time."""
AT_BEST = 0.95
"""Share of right guesses with which a model must be worth its time, or it is not asked."""


class DraftModel:
    """A model that guesses for another one, in as many slots. times: of its own steps of one token."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.conversations = [Conversation() for _ in range(model.slots)]
        self.times = StepTimes(lambda tokens: 1.0, 1)


def check_draft(model: Model, tokens: Tokenizer | None, draft: Model, draft_tokens: Tokenizer | None) -> None:
    """InputError where a draft model has other tokens or fewer slots, UnsupportedError where it takes no token back."""
    advice = "a draft needs the same tokenizer: choose a smaller model of the same family"
    if tokens is None or draft_tokens is None:
        if model.spec.vocab != draft.spec.vocab:
            counts = f"{draft.spec.vocab:,} tokens, {model.name} has {model.spec.vocab:,}"
            raise InputError(f"draft: {draft.name} has {counts}; {advice}")
    elif (ours := tokens.vocabulary) != (theirs := draft_tokens.vocabulary):
        text, id = min(ours.items() ^ theirs.items(), key=lambda item: (item[1], item[0]))
        raise InputError(
            f"draft: {draft.name} and {model.name} have other tokens (one of them has {text!r} as {id}); {advice}"
        )
    if draft.slots < model.slots:
        raise InputError(f"draft: {draft.name} has {draft.slots} slots, expected at least {model.slots}")
    if any(layer.attention is None for layer in draft.spec.layers):
        raise UnsupportedError(
            f"draft: {draft.name} has convolutions or recurrences, which cannot take tokens back; {advice}"
        )


class ModelGuesses:
    """What a draft model guesses for one generation."""

    def __init__(self, draft: DraftModel, slot: int, params: SamplingParams, banned: Banned) -> None:
        self._draft, self._odds = draft, Odds(FIRST, 4.0)
        self._own = Decoding(draft.model, slot, draft.conversations[slot], [], Sampler(params, 0), banned)
        self._agreed = 0  # of the draft's ids, those that were the text's when it was last asked
        self._last: list[tuple[int, int]] = []  # guesses, and their kinds
        self._waited, self._patience = 0, AGAIN

    def promise(self, most: int, seconds: Callable[[int], float]) -> tuple[int, float]:
        """As `worth`: guesses that are expected to be worth the time of both models."""
        if not self._draft.times.known:  # nothing is known before it was asked once
            return 1, math.inf
        together = self._with_draft(seconds)
        count, rate = worth([self._odds[ANY]] * most, together)
        self._waited += 1
        if not count and self._waited > self._patience and worth([AT_BEST] * most, together)[0]:
            self._patience *= 2
            return 1, math.inf
        return count, rate

    def _with_draft(self, seconds: Callable[[int], float]) -> Callable[[int], float]:
        times = self._draft.times
        return lambda count: seconds(count) + (count * times.seconds(1) if count else 0.0)

    def guesses(
        self, ids: Sequence[int], most: int, vocab: int, sampler: Sampler, seconds: Callable[[int], float]
    ) -> list[int]:
        """The next tokens after `ids`, as many as seem worth their time; `sampler` is not changed."""
        own, self._waited = self._own, 0
        own.sampler.draw_like(sampler)
        own.go_on(ids, self._agreed)
        self._agreed = len(ids)
        shares: list[float] = []
        most = min(most, self._draft.model.ctx - len(ids))
        while len(shares) < most:
            missing, began = len(own.ids) - len(own.conversation.ids), perf_counter()
            chosen = own.next()
            if missing <= 2:  # after right guesses the last of them is read with the token behind it
                self._draft.times.record(1, perf_counter() - began)
            if chosen.token >= vocab:
                break
            kind = _kind(chosen)
            self._last.append((chosen.token, kind))
            shares.append(self._odds[kind])
            if not self._draft.times.known:
                break
            hoped = [*shares, *[self._odds[ANY]] * (most - len(shares))]
            if worth(hoped, self._with_draft(seconds))[0] <= len(shares):
                break
        spent = len(shares) * self._draft.times.seconds(1) if self._draft.times.known else 0.0
        count, _ = worth(shares, lambda count: seconds(count) + spent)
        return [token for token, _ in self._last[:count]]

    def learn(self, chosen: Sequence[Chosen]) -> None:
        """Compare the last guesses with what was chosen; one more than were checked, which costs nothing."""
        for (guess, kind), found in zip(self._last, chosen, strict=False):
            for each in (kind, ANY):
                self._odds.record(each, guess == found.token)
            if guess != found.token:
                break
        self._last = []


def _kind(chosen: Chosen) -> int:
    """How sure a model was of a token."""
    if chosen.logprob is None:
        return ANY
    return sum(math.exp(chosen.logprob) >= bound for bound in LIKELY)
