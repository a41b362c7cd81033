"""Steps that several generations share, each in a slot of its own: what is due of each, run in one step of the model.

A step reads the weights once for all of them. Logits are the same bits whatever else runs in a step, so the tokens of
each are those that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from lapinfer.errors import LapinferError
from lapinfer.text.decoding import Conversation, Decoding, Piece
from lapinfer.text.followers import Followers
from lapinfer.text.generation import Generation
from lapinfer.text.reuse import slot_for
from lapinfer.text.touched import Touched

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model


PIECE = 32
"""Prompt tokens of a step in which others decode: they wait a few of their own steps for it, whatever its length."""


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

    def needed(self) -> int | None: ...

    def ran(self, piece: Piece, logits: Logits, row: int) -> E | None: ...


class Asked(Protocol[E]):
    """What a caller asks for: a `Request`, an `EmbeddingRequest`."""

    @property
    def model(self) -> Model: ...

    @property
    def prompt(self) -> list[int]: ...

    def begin(self, slot: int, conversation: Conversation) -> Runnable[E]: ...


@dataclass(frozen=True, eq=False, slots=True)
class Running:
    """A request that has a slot. client: whose it is, for fair shares. touched: by the steps it took part in."""

    slot: int
    client: str
    generation: Runnable[Any]
    touched: Touched


class SharedSteps:
    """Requests that have begun and not ended, as many as there are conversations, which are what slots hold."""

    def __init__(self, model: Model, conversations: Sequence[Conversation]) -> None:
        self._model, self._conversations = model, conversations
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
        generation = request.begin(slot, self._conversations[slot])
        generation.started = since
        begun = Running(slot, client, generation, Touched(self._model.runner.new_meter()))
        self.running.append(begun)
        if isinstance(generation, Generation):
            self._followers.add(generation.decoding, self._decodings()[:-1])
        return begun

    def _decodings(self) -> list[Decoding]:
        return [each.generation.decoding for each in self.running if isinstance(each.generation, Generation)]

    def drop(self, dropped: Running) -> None:
        """End one before its end; its slot is free."""
        self.running.remove(dropped)

    def step(self) -> Sequence[tuple[Running, Any]]:
        """Run what is due: the `Event` of each that has one now, or the LapinferError that has ended it.

        An error of the whole step ends all that took part.
        """
        with self._model.lock:  # logits are views that the next step overwrites
            due = self._pieces()
            try:
                events = self._run(due)
            except LapinferError as error:
                events = [(each, error) for each, _ in due]
        ran = {each for each, _ in due}
        ended = {each for each, event in events if isinstance(event, LapinferError) or event.finish_reason is not None}
        # Those that decode and had no room come first now; prompts keep their order.
        self.running.sort(key=lambda each: each in ran and each.generation.decodes)
        self.running = [each for each in self.running if each not in ended]
        return events

    def _run(self, due: Sequence[tuple[Running, Piece]]) -> list[tuple[Running, Any]]:
        tokens = np.array([id for _, piece in due for id in piece.tokens], np.int32)
        slots = np.repeat([each.slot for each, _ in due], [len(piece.tokens) for _, piece in due])
        positions = np.concatenate([piece.start + np.arange(len(piece.tokens)) for _, piece in due])
        want = np.zeros(len(tokens), bool)
        ends = np.cumsum([len(piece.tokens) for _, piece in due]).tolist()
        for (_, piece), end in zip(due, ends, strict=True):
            want[end - piece.wanted : end] = True
        needed = [each.generation.needed() for each, piece in due if piece.wanted]
        best = None if None in needed else max((n for n in needed if n is not None), default=None)
        self.prompt_tokens += sum(len(piece.tokens) for each, piece in due if not each.generation.decodes)
        logits = self._model.step(tokens, slots, positions, want, best=best)
        events: list[tuple[Running, Any]] = []
        row = 0
        for each, piece in due:
            each.touched.note(self._model.usage, len(due))
            try:
                event = each.generation.ran(piece, logits, row)
                if event is not None and event.finish_reason is not None:
                    event = replace(event, touched=each.touched)
            except LapinferError as error:  # of its sampler, or its grammar
                event = error
            row += piece.wanted
            if event is not None:
                events.append((each, event))
        return events

    def _pieces(self) -> list[tuple[Running, Piece]]:
        """What a step runs: the next token of those that decode, and of prompts what there is room for besides."""
        model = self._model
        decoding = [each for each in self.running if each.generation.decodes]
        waiting = {decoding.slot for decoding in self._followers.waiting(self._decodings())}
        prompts = [each for each in self.running if not each.generation.decodes and each.slot not in waiting]
        due: list[tuple[Running, Piece]] = []
        room, wanted = model.max_step, model.max_wanted
        for some, most in ((decoding, room), (prompts, PIECE if decoding else room)):
            room = min(room, most)
            for each in some:
                if room and wanted:
                    piece = each.generation.due(room, wanted)
                    due.append((each, piece))
                    room, wanted = room - len(piece.tokens), wanted - piece.wanted
        return due
