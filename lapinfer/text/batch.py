"""Batches: several generations run in the same steps of a model, each in a slot of its own.

A step reads the weights once for all of them. Logits are the same bits whatever else runs in a step, so the tokens of
each are those that it would have alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.text.decoding import Conversation, Piece, shared
from lapinfer.text.generation import Generation, Request, Token

if TYPE_CHECKING:
    from lapinfer.model import Model

PIECE = 32
"""Prompt tokens of a step in which others decode: they wait a few of their own steps for it, whatever its length."""


@dataclass(frozen=True, eq=False, slots=True)
class _Running:
    """A generation that has a slot. index: of its request."""

    index: int
    slot: int
    generation: Generation


def stream_batch(
    model: Model, requests: Sequence[Request], conversations: Sequence[Conversation]
) -> Iterator[tuple[int, Token]]:
    """(index of its request, event) of each token, as steps bring them; requests begin in their order.

    conversations: what each slot of the model holds. A request without a free slot waits for one.
    """
    began, waiting = time.perf_counter(), deque(enumerate(requests))
    running: list[_Running] = []
    while waiting or running:
        free = set(range(len(conversations))) - {each.slot for each in running}
        while waiting and free:
            index, request = waiting.popleft()
            slot = max(sorted(free), key=lambda slot: shared(conversations[slot].ids, request.prompt))
            free.remove(slot)
            generation = request.begin(slot, conversations[slot])
            generation.started = began
            running.append(_Running(index, slot, generation))
        with model.lock:  # logits are views that the next step overwrites
            due = _pieces(model, running)
            events = _step(model, due)
        ran = {each for each, _ in due}
        # Those that decode and had no room come first now; prompts keep their order.
        running.sort(key=lambda each: each in ran and each.generation.decoding.steps > 0)
        running = [each for each in running if not each.generation.finished]
        yield from events


def _step(model: Model, due: Sequence[tuple[_Running, Piece]]) -> list[tuple[int, Token]]:
    """Run what is due; the events that it brings."""
    tokens = np.array([id for _, piece in due for id in piece.tokens], np.int32)
    slots = np.repeat([each.slot for each, _ in due], [len(piece.tokens) for _, piece in due])
    positions = np.concatenate([piece.start + np.arange(len(piece.tokens)) for _, piece in due])
    want = np.zeros(len(tokens), bool)
    ends = np.cumsum([len(piece.tokens) for _, piece in due]) - 1
    want[ends] = [piece.complete for _, piece in due]
    complete = [each for each, piece in due if piece.complete]
    needed = [each.generation.decoding.needed() for each in complete]
    best = None if None in needed else max((n for n in needed if n is not None), default=None)
    logits = model.step(tokens, slots, positions, want, best=best)
    for each, piece in due:
        each.generation.decoding.ran(piece)
    return [
        (each.index, each.generation.push(each.generation.decoding.choose(logits, row)))
        for row, each in enumerate(complete)
    ]


def _pieces(model: Model, running: Sequence[_Running]) -> list[tuple[_Running, Piece]]:
    """What a step runs: the next token of those that decode, and of prompts what there is room for besides."""
    decoding = [each for each in running if each.generation.decoding.steps]
    prompts = [each for each in running if not each.generation.decoding.steps]
    due: list[tuple[_Running, Piece]] = []
    room = model.max_step
    for some, most in ((decoding, room), (prompts, PIECE if decoding else room)):
        room = min(room, most)
        for each in some:
            if room and len(due) < model.max_wanted:
                piece = each.generation.decoding.due(room)
                due.append((each, piece))
                room -= len(piece.tokens)
    return due
