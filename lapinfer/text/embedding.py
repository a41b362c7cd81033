"""Embeddings: a vector for each text, of the hidden states after the model's last norm.

Those of one text are the same bits whatever shares its steps, and are added up in the order of their positions, in
float64: so is the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lapinfer.arguments import described, flag
from lapinfer.errors import ContextError, InputError
from lapinfer.text.decoding import Conversation, Piece
from lapinfer.text.speculation import Speculation
from lapinfer.text.touched import Touched

if TYPE_CHECKING:
    from lapinfer.model import Logits, Model

Pooling = Literal["mean", "last"]
"""The mean of all positions' hidden states, or those of the last position."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The one event of an embedding that was asked for. vector: float32 [D]. prompt_tokens: of its text. touched: as in
    `Token`."""

    vector: np.ndarray
    prompt_tokens: int
    finish_reason: Literal["stop"] = "stop"
    touched: Touched | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A text whose embedding is wanted, checked: see `embedding_request`."""

    model: Model
    prompt: list[int]
    pooling: Pooling
    normalize: bool

    def begin(self, slot: int, conversation: Conversation, speculation: Speculation | None = None) -> Embedder:
        """Its reading in a slot, as in `Request.begin`; there is nothing to guess."""
        return Embedder(self, conversation)


def embedding_request(model: Model, ids: list[int], pooling: Any, normalize: Any) -> EmbeddingRequest:
    """The embedding of a text's token ids. InputError where they do not fit the context, or for an unknown pooling."""
    pooled = checked_pooling(pooling)
    if len(ids) > model.ctx:
        raise ContextError(
            f"the text has {len(ids)} tokens, but the context holds {model.ctx}: "
            f"give it at least {len(ids)} with -c (or ctx=), or shorten the text"
        )
    return EmbeddingRequest(model, ids, pooled, flag("normalize", normalize))


def checked_pooling(pooling: Any) -> Pooling:
    """One of the two; InputError for anything else."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling: expected {' or '.join(get_args(Pooling))}, got {described(pooling)}")
    return pooling


class Embedder:
    """Reads a text, and pools what it finds. It reads all of it, whatever its slot holds."""

    decodes = False
    reused = 0

    def __init__(self, request: EmbeddingRequest, conversation: Conversation) -> None:
        self.started = perf_counter()
        self._request, self._conversation, self._writer = request, conversation, object()
        self._held: list[int] = []
        self._pooled = 0
        self._total = np.zeros(request.model.spec.hidden, np.float64)

    def due(self, most: int, most_wanted: int) -> Piece:
        """As `Decoding.due`."""
        conversation, request = self._conversation, self._request
        if conversation.writer is not self._writer:
            conversation.writer, self._held = self._writer, []
        conversation.ids = []  # a step that fails may leave anything
        start, mean = len(self._held), request.pooling == "mean"
        tokens = request.prompt[start : start + (min(most, most_wanted) if mean else most)]
        complete = start + len(tokens) == len(request.prompt)
        return Piece(tokens, start, complete, len(tokens) if mean else int(complete))

    def needed(self, piece: Piece) -> int:
        """No logits."""
        return 0

    def bits(self) -> None:
        """And none that is not allowed."""

    def ran(self, piece: Piece, logits: Logits, row: int) -> list[Embedding]:
        """As `Generation.ran`."""
        self._held.extend(piece.tokens)
        self._conversation.ids = self._held
        first = piece.start + len(piece.tokens) - piece.wanted
        for position in range(max(first, self._pooled), first + piece.wanted):
            self._total += logits.hidden[row + position - first]
            self._pooled = position + 1
        return [Embedding(self._vector(), len(self._request.prompt))] if piece.complete else []

    def _vector(self) -> np.ndarray:
        vector = self._total
        if self._request.pooling == "mean":
            vector = vector / len(self._request.prompt)
        if self._request.normalize:
            vector = vector / max(float(np.sqrt((vector * vector).sum())), np.finfo(np.float32).tiny)
        return vector.astype(np.float32)


def stacked(embeddings: Sequence[Embedding], width: int) -> np.ndarray:
    """Their vectors, float32 [N, width]."""
    return np.stack([each.vector for each in embeddings]) if embeddings else np.empty((0, width), np.float32)
