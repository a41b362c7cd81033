"""Speculation: tokens are guessed, and several are checked in one step; the text stays what it is without guesses.

A step runs the last token and the guesses after it, and gives logits after each: the bits that steps of one token
would give. Positions are sampled in their order, with the random numbers of plain decoding, as long as the guesses
before them equal what was sampled. So nothing but the time depends on guesses, and none is accepted by chance, as in
speculative sampling (Leviathan et al., arXiv 2211.17192), whose texts are only distributed alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lapinfer.errors import LapinferError
from lapinfer.kernels.operands import KEY_LANES
from lapinfer.runtime.predict import predict_bytes
from lapinfer.tensors import tensors
from lapinfer.text.copies import Copies
from lapinfer.text.decoding import Decoding
from lapinfer.text.draft_model import DraftModel, ModelGuesses
from lapinfer.text.likelihood import Chosen
from lapinfer.text.step_times import Balance, StepTimes, worth

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model

MOST = 15
"""Guesses of a step: with the token before them, two activation tiles."""
COMPUTING = 0.12
"""What a token more is thought to cost besides bytes, in steps of one token, before that was measured."""
QUICK = 1e-3
"""Seconds of a step below which nothing is guessed: looking for guesses would take a part of it that can be felt."""


class Speculation:
    """What generations of one model share: the times of its steps.

    most: guesses of a step; 0 where nothing can be guessed, because a token cannot be taken back. draft: a model that
    guesses, too.
    """

    def __init__(self, model: Model, draft: DraftModel | None = None) -> None:
        self.model, self.draft = model, draft
        self.most = most_guesses(model)
        self.times = StepTimes(partial(expected_time, model), self.most + 1)


def most_guesses(model: Model) -> int:
    """How many of a step's last tokens can be taken back, at most MOST.

    A convolution's inputs are a ring of its own length, which holds nothing older. Windows of keys are rings with room
    for a step more; reading begins at whole vectors of KEY_LANES keys.
    """
    layers = model.spec.layers
    if any(layer.convolution is not None for layer in layers):
        return 0
    room = model.max_step - 1
    if any(layer.window is not None for layer in layers):
        room -= KEY_LANES
    return max(min(MOST, room, model.max_wanted - 1), 0)


def expected_time(model: Model, tokens: int) -> float:
    """What a step of so many tokens takes, in steps of one, as bytes say: a mixture reads more experts."""
    bytes = 1.0
    if any(layer.feed_forward.router is not None for layer in model.spec.layers):
        formats = {name: str(model.weights.format(name)) for name, t in tensors(model.spec).items() if t.is_matrix}

        def touched(count: int) -> int:
            return sum(predict_bytes(model.spec, formats, model.kv, [0] * count, range(count), count).values())

        bytes = touched(tokens) / touched(1)
    return bytes + COMPUTING * (tokens - 1)


class Speculating(Decoding):
    """Decoding whose steps may run guesses, too: `next` gives the same tokens, some of them without a step."""

    def __init__(self, speculation: Speculation, *decoding: Any, ends: frozenset[int], limit: int) -> None:
        """decoding: what `Decoding` takes. ends: tokens after which nothing comes. limit: tokens to choose at most."""
        super().__init__(*decoding)
        self._speculation, self._ends, self._end = speculation, ends, len(self.ids) + limit
        self._ready: deque[Chosen] = deque()
        self._guesses = speculation.most > 0
        self._copies: Copies | None = None
        self._balance = Balance()
        draft = speculation.draft
        self._drafting = None if draft is None else ModelGuesses(draft, self.slot, self.sampler.params, self.banned)

    def next(self) -> Chosen:
        if not self._ready:
            with self.model.lock:  # views again: all that a step brings is chosen before another one runs
                self._ready.extend(self._several())
        return self._ready.popleft()

    def _several(self) -> list[Chosen]:
        """The tokens that one step brings."""
        kept = self._kept()
        watched = self.model.routing is not None  # experts of the text's tokens are counted, and of no others
        if kept < len(self.ids) - 1 or not self._guesses or watched:
            return [self.choose(self._run(kept), 0)]
        guesses = self._guess(min(self._speculation.most, self._end - len(self.ids) - 1))
        began = perf_counter()
        try:
            logits = self._run(kept, guesses)
        except LapinferError:
            if not guesses:
                raise
            self._guesses, guesses = False, []  # a wrong guess may be what went wrong
            logits = self._run(kept)
        self._speculation.times.record(1 + len(guesses), perf_counter() - began)
        self.drafted += len(guesses)
        tokens = self._checked(logits, guesses)
        self._balance.record(self._speculation.times.steps(1 + len(guesses)), len(tokens))
        if self._drafting is not None:
            self._drafting.learn(tokens)
        return tokens

    def _checked(self, logits: Logits, guesses: Sequence[int]) -> list[Chosen]:
        """Choose tokens as long as what was guessed before them is what was chosen."""
        tokens = [self.choose(logits, 0)]
        for row, guess in enumerate(guesses, 1):
            if tokens[-1].token != guess or guess in self._ends:
                break
            self.kept += 1
            try:
                tokens.append(self.choose(logits, row))
            except LapinferError:
                break  # told by the step that comes next, if it ever does
            self.conversation.ids.append(guess)
        return tokens

    def _guess(self, most: int) -> list[int]:
        """Guesses that promise more tokens per second than a step without any."""
        times, drafting = self._speculation.times, self._drafting
        if most < 1 or not times.known or times.seconds(1) < QUICK:
            return []
        if self._copies is None:
            self._copies = Copies(self.ids)
        else:
            self._copies.extend(self.ids)

        def seconds(count: int) -> float:
            return times.seconds(1 + count)

        count, rate = worth(self._copies.shares(most), seconds, self._balance.gain)
        if drafting is not None:
            drafted, promised = drafting.promise(most, seconds)
            if drafted and promised > rate:
                try:
                    return drafting.guesses(self.ids, most, self.model.spec.vocab, self.sampler, seconds)
                except LapinferError:
                    self._drafting = None  # its troubles are none of the text's
        return self._copies.guesses(count)
