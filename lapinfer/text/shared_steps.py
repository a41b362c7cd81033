"""Steps that several generations share, each in a slot of its own: what is due of each, run in one step of the model.

A step reads the weights once for all of them. Logits are the same bits whatever else runs in a step, so the tokens of
each are those that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from lapinfer.errors import LapinferError
from lapinfer.text.decoding import Conversation, Decoding, Piece
from lapinfer.text.followers import Followers
from lapinfer.text.generation import Generation
from lapinfer.text.pace import Pace
from lapinfer.text.reuse import slot_for
from lapinfer.text.speculation import Speculating, Speculation
from lapinfer.text.touched import Touched

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model


class Event(Protocol):
    """What a step brings: a `Token`, an `Embedding`. One with a reason is the last of its request, and has
    what the steps of that have `touched`.
    """

    @property
    def finish_reason(self) -> str | None: ...


E = TypeVar("E", bound=Event, covariant=True)


class Runnable(Protocol[E]):
    """What steps can run of a request: a `Generation`, an `Embedder`. started: when it was asked for."""

    started: float

    @property
    def decodes(self) -> bool: ...

    @property
    def reused(self) -> int: ...

    def due(self, most: int, most_wanted: int) -> Piece: ...

    def needed(self, piece: Piece) -> int | None: ...

    def bits(self) -> np.ndarray | None: ...

    def ran(self, piece: Piece, logits: Logits, row: int) -> Sequence[E]: ...


class Asked(Protocol[E]):
    """What a caller asks for: a `Request`, an `EmbeddingRequest`."""

    @property
    def model(self) -> Model: ...

    @property
    def prompt(self) -> list[int]: ...

    def begin(self, slot: int, conversation: Conversation, speculation: Speculation | None = None) -> Runnable[E]: ...


@dataclass(eq=False, slots=True)
class Running:
    """A request that has a slot. client: whose it is; left: how much of its prompt there is to read, at most; touched:
    by the steps that it took part in; began: when it got its slot (perf_counter).
    """

    slot: int
    client: str
    generation: Runnable[Any]
    left: int
    touched: Touched
    began: float = field(default_factory=perf_counter)


Due = tuple[Running, Piece]


class SharedSteps:
    """Requests that have begun and not ended, as many as there are conversations, which are what slots hold.

    speculation: what they guess by, where that promises more tokens per second of all together.
    """

    def __init__(
        self, model: Model, conversations: Sequence[Conversation], speculation: Speculation | None = None
    ) -> None:
        self._model, self._conversations, self._speculation = model, conversations, speculation
        self._pace = Pace()
        self.running: list[Running] = []
        self._followers = Followers()
        self.prompt_tokens = 0
        """Tokens of prompts that steps have read."""

    @property
    def free(self) -> int:
        """Slots that are free."""
        return len(self._conversations) - len(self.running)

    def begin(self, request: Asked[Any], since: float, client: str = "") -> Running:
        """Give a request that was asked for at some time (perf_counter) a free slot.

        Where another one reads what it begins with, it waits for that, and has it from there.
        """
        free = set(range(len(self._conversations))) - {each.slot for each in self.running}
        slot = slot_for(self._conversations, free, request.prompt)
        generation = request.begin(slot, self._conversations[slot], self._speculation)
        generation.started = since
        touched = Touched(self._model.runner.new_meter())
        begun = Running(slot, client, generation, len(request.prompt), touched)
        self.running.append(begun)
        if isinstance(generation, Generation):
            self._followers.add(generation.decoding, self._decodings()[:-1])
        return begun

    def _decodings(self) -> list[Decoding]:
        return [each.generation.decoding for each in self.running if isinstance(each.generation, Generation)]

    def drop(self, dropped: Running) -> None:
        """End one before its end; its slot is free."""
        self.running.remove(dropped)

    def step(self) -> list[tuple[Running, Any]]:
        """Run what is due: each `Event` that there is now, or the LapinferError that has ended a request.

        An error of the whole step ends all that took part.
        """
        with self._model.lock:  # logits are views that the next step overwrites
            one = self.running[0]
            if len(self.running) == 1 and isinstance(one.generation, Generation) and one.generation.can_guess:
                events = self._alone(one, one.generation)
            else:
                events = self._together()
        ended = {each for each, event in events if isinstance(event, LapinferError) or event.finish_reason is not None}
        self.running = [each for each in self.running if each not in ended]
        return events

    def _alone(self, one: Running, generation: Generation) -> list[tuple[Running, Any]]:
        """The step of one that shares it with nobody: it guesses as when it is run by itself."""
        began, drafted = perf_counter(), generation.decoding.drafted
        try:
            brought = generation.several()
        except LapinferError as error:
            return [(one, error)]
        one.touched.note(self._model.usage, 1)
        if generation.decoding.drafted == drafted:
            self._pace.record(1, 0, perf_counter() - began)
        return _events(one, brought)

    def _together(self) -> list[tuple[Running, Any]]:
        due = self._due()
        try:
            try:
                return self._run(due)
            except LapinferError:
                if not any(piece.guesses for _, piece in due):
                    raise
                for each, piece in due:  # a wrong guess may be what went wrong
                    if piece.guesses and (guesser := _guesser(each)) is not None:
                        guesser.stop_guessing()
                return self._run([(each, piece._replace(guesses=())) for each, piece in due])
        except LapinferError as error:
            return [(each, error) for each, _ in due]

    def _due(self) -> list[Due]:
        """What a step runs: the next token of those that decode, and of prompts what there is room for besides."""
        decode = [each for each in self.running if each.generation.decodes]
        waiting = {decoding.slot for decoding in self._followers.waiting(self._decodings())}
        read = [each for each in self.running if not each.generation.decodes and each.slot not in waiting]
        read.sort(key=lambda each: each.left)
        room, wanted = self._model.max_step, self._model.max_wanted
        due = _portions(decode, room, wanted)
        if len(due) < len(decode):  # those without room come first in the next step
            served = [each for each, _ in due]
            self.running = [each for each in self.running if each not in served] + served
        room, wanted = room - sum(len(piece.tokens) for _, piece in due), wanted - sum(piece.wanted for _, piece in due)
        if prompts := _portions(read, min(room, self._pace.room(len(due))), wanted):
            return due + prompts
        if read or self._speculation is None:  # a step without prompts is due, to see what that takes: without guesses
            return due
        guesses = self._speculation.shared([_guesser(each) for each, _ in due])
        return [(each, piece._replace(guesses=of)) for (each, piece), of in zip(due, guesses, strict=True)]

    def _run(self, due: Sequence[Due]) -> list[tuple[Running, Any]]:
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        want: list[bool] = []
        for each, piece in due:  # lists, since arrays of one token each take longer
            ids, wanted = [*piece.tokens, *piece.guesses], piece.wanted + len(piece.guesses)
            tokens += ids
            slots += [each.slot] * len(ids)
            positions += range(piece.start, piece.start + len(ids))
            want += [False] * (len(ids) - wanted) + [True] * wanted
        needed = [each.generation.needed(piece) for each, piece in due if piece.wanted]
        best = None if None in needed else max((n for n in needed if n is not None), default=None)
        allowed = [bits for each, piece in due for bits in _allowed(each, piece)] if best else None
        began = perf_counter()
        logits = self._model.step(
            np.array(tokens, np.int32), np.array(slots), np.array(positions), np.array(want), best=best,
            guessed=any(piece.guesses for _, piece in due), allowed=allowed,
        )  # fmt: skip
        self._learn(due, perf_counter() - began)
        events: list[tuple[Running, Any]] = []
        row = 0
        for each, piece in due:
            each.left -= len(piece.tokens)
            each.touched.note(self._model.usage, len(due))
            try:
                events += _events(each, each.generation.ran(piece, logits, row))
            except LapinferError as error:  # of its sampler, or its grammar
                events.append((each, error))
            row += piece.wanted + len(piece.guesses)
        return events

    def _learn(self, due: Sequence[Due], seconds: float) -> None:
        """Learn from a step what steps take."""
        decode = [(each, piece) for each, piece in due if each.generation.decodes]
        read = sum(len(piece.tokens) for each, piece in due if not each.generation.decodes)
        self.prompt_tokens += read
        if not any(piece.guesses for _, piece in due):
            self._pace.record(len(decode), read, seconds)
        if not read and self._speculation is not None:
            self._speculation.learn(
                [_guesser(each) for each, _ in decode], [len(piece.guesses) for _, piece in decode], seconds
            )


def _portions(some: Sequence[Running], room: int, wanted: int) -> list[Due]:
    """What is due of some, in equal portions of a step's room; what one leaves is for those after it."""
    due: list[Due] = []
    for index, each in enumerate(some):
        if room and wanted:
            piece = each.generation.due(-(-room // (len(some) - index)), wanted)
            due.append((each, piece))
            room, wanted = room - len(piece.tokens), wanted - piece.wanted
    return due


def _allowed(one: Running, piece: Piece) -> list[np.ndarray | None]:
    """What is allowed after each token of a piece whose logits are wanted, and after each guess."""
    rows = piece.wanted + len(piece.guesses)
    bits = one.generation.bits() if piece.complete else None
    return [bits if row == piece.wanted - 1 else None for row in range(rows)]


def _guesser(one: Running) -> Speculating | None:
    return one.generation.guesser if isinstance(one.generation, Generation) else None


def _events(one: Running, events: Sequence[Any]) -> list[tuple[Running, Any]]:
    """What one request's steps bring; the last event has what they touched."""
    return [(one, event if event.finish_reason is None else replace(event, touched=one.touched)) for event in events]
