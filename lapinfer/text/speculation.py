"""Speculation: tokens are guessed, and several are checked in one step; the text stays what it is without guesses.

A step runs the last token and the guesses after it, and gives logits after each: the bits that steps of one token
would give. Positions are sampled in their order, with the random numbers of plain decoding, as long as the guesses
before them equal what was sampled. So nothing but the time depends on guesses, and none is accepted by chance, as in
speculative sampling (Leviathan et al., arXiv 2211.17192), whose texts are only distributed alike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from operator import mul
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
from lapinfer.text.step_times import GAIN, Balance, StepTimes, most_worth, worth

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

    def shared(self, all: Sequence[Speculating | None]) -> list[Sequence[int]]:
        """Guesses of sequences whose next tokens share a step: those that promise most tokens per second of all.

        None stands for one that guesses nothing.
        """
        times, alone = self.times, len(all)
        room = self.most + 1 - alone
        offers: list[tuple[float, int]] = []
        for i, each in enumerate(all):
            if room > 0 and each is not None:
                offers += ((-chance, i) for chance in each.chances(room))
        offers = sorted(offers)[:room]
        if not offers:
            return [()] * alone
        count, _ = most_worth([-each for each, _ in offers], lambda n: times.seconds(alone + n), tokens=alone)
        counts = Counter(i for _, i in offers[:count])
        return [() if each is None else each.guesses(counts[i]) for i, each in enumerate(all)]

    def learn(self, all: Sequence[Speculating | None], guesses: Sequence[int], seconds: float) -> None:
        """Learn from a step that sequences shared, with so many guesses of each."""
        times, alone, guessed = self.times, len(all), sum(guesses)
        if alone + guessed > self.most + 1:
            return
        times.record(alone + guessed, seconds)
        more = alone * (times.steps(alone + guessed) / times.steps(alone) - 1) / max(guessed, 1)  # of each guess
        for each, count in zip(all, guesses, strict=True):
            if each is not None:
                each.spend(1 + more * count)


def most_guesses(model: Model) -> int:
    """How many of a step's last tokens can be taken back, at most MOST.

    What convolutions and recurrences keep are rings of their own lengths, which hold nothing older. Windows of keys are
    rings with room for a step more; reading begins at whole vectors of KEY_LANES keys.
    """
    layers = model.spec.layers
    if any(layer.attention is None for layer in layers):
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
        self._guessing = speculation.most > 0
        self._copies: Copies | None = None
        self._balance, self._spent = Balance(), 1.0
        draft = speculation.draft
        self._drafting = None if draft is None else ModelGuesses(draft, self.slot, self.sampler.params, self.banned)

    def next(self) -> Chosen:
        if not self._ready:
            with self.model.lock:  # views again: all that a step brings is chosen before another one runs
                self._ready.extend(self.several())
        return self._ready.popleft()

    def several(self) -> list[Chosen]:
        """The tokens that one step brings, at least one; the model's lock is held."""
        kept = self._kept()
        if kept < len(self.ids) - 1 or not self._may_guess:
            return [self.choose(self._run(kept), 0)]
        guesses = self._guess(self._most(self._speculation.most))
        began = perf_counter()
        try:
            logits = self._run(kept, guesses)
        except LapinferError:
            if not guesses:
                raise
            self.stop_guessing()
            guesses = []
            logits = self._run(kept)
        self._speculation.times.record(1 + len(guesses), perf_counter() - began)
        self.spend(self._speculation.times.steps(1 + len(guesses)))
        tokens = self.checked(logits, 0, guesses)
        if self._drafting is not None:
            self._drafting.learn(tokens)
        return tokens

    @property
    def _may_guess(self) -> bool:
        # While experts are counted, they are those of the text's tokens, and of no others.
        return self._guessing and self.model.routing is None

    def _most(self, most: int) -> int:
        """How many guesses can be of use."""
        return min(most, self._end - len(self.ids) - 1)

    def stop_guessing(self) -> None:
        """Guess no more: a wrong guess may be what went wrong in a step."""
        self._guessing = False

    def spend(self, steps: float) -> None:
        """Note that a step took as long as so many without guesses would, before what it brought is `checked`."""
        self._spent = steps

    def chances(self, most: int) -> Sequence[float]:
        """Of guesses of what follows, so many or fewer, the chance that each is right, and those before it are."""
        copies = self._known_copies() if self._may_guess and self._balance.gain == GAIN else None
        return () if copies is None else list(accumulate(copies.shares(max(self._most(most), 0)), mul))

    def guesses(self, count: int) -> Sequence[int]:
        """The first of those whose chances were told."""
        return [] if self._copies is None else self._copies.guesses(count)

    def _known_copies(self) -> Copies | None:
        """What the text may copy; None where steps are too short, or not known to be long enough."""
        times = self._speculation.times
        if not times.known or times.seconds(1) < QUICK:
            return None
        if self._copies is None:
            self._copies = Copies(self.ids)
        else:
            self._copies.extend(self.ids)
        return self._copies

    def checked(self, logits: Logits, row: int, guesses: Sequence[int]) -> list[Chosen]:
        """Choose tokens as long as what was guessed before them is what was chosen."""
        self.drafted += len(guesses)
        tokens = [self.choose(logits, row)]
        for at, guess in enumerate(guesses, row + 1):
            if tokens[-1].token != guess or guess in self._ends:
                break
            self.kept += 1
            try:
                tokens.append(self.choose(logits, at))
            except LapinferError:
                break  # told by the step that comes next, if it ever does
            self.conversation.ids.append(guess)
        self._balance.record(self._spent, len(tokens))
        return tokens

    def _guess(self, most: int) -> list[int]:
        """Guesses that promise more tokens per second than a step without any."""
        times, drafting, copies = self._speculation.times, self._drafting, self._known_copies()
        if most < 1 or copies is None:
            return []

        def seconds(count: int) -> float:
            return times.seconds(1 + count)

        count, rate = worth(copies.shares(most), seconds, self._balance.gain)
        if drafting is not None:
            drafted, promised = drafting.promise(most, seconds)
            if drafted and promised > rate:
                try:
                    return drafting.guesses(self.ids, most, self.model.spec.vocab, self.sampler, seconds)
                except LapinferError:
                    self._drafting = None  # its troubles are none of the text's
        return copies.guesses(count)
