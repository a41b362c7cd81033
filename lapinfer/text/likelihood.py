"""How likely tokens are under a model's own logits: at temperature 1, nothing filtered, penalized or banned.

All log-probabilities of this program are computed here, so those of a text that is generated are, to the bit, those
that it has when it is scored.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lapinfer.arguments import described, is_whole
from lapinfer.errors import InputError
from lapinfer.text.largest import largest

Top = tuple[tuple[int, float], ...]
"""The most likely tokens with their log-probabilities, most likely first, equal ones by id."""
MOST_TOP = 20
"""As many as OpenAI's API gives."""
SCORED_PIECE = 64
"""Positions of a text that is scored whose logits are asked for in one step: 64 · 49,152 logits are 13 MB."""


class Chosen(NamedTuple):
    """A token, its log-probability and the most likely ones, as in `Token`."""

    token: int
    logprob: float | None = None
    top: Top = ()


def alternatives(name: str, asked: Any) -> int | None:
    """How many of the most likely tokens are told beside one's own log-probability; None: not even that.

    asked: True (its own alone), False (nothing), or a number; InputError for anything else.
    """
    if isinstance(asked, bool):
        return 0 if asked else None
    if is_whole(asked) and 0 <= int(asked) <= MOST_TOP:
        return int(asked)
    raise InputError(f"{name}: expected True, False or a whole number from 0 to {MOST_TOP}, got {described(asked)}")


@np.errstate(over="ignore")  # of logits at both ends of float32: a difference of −inf is right
def log_probs(logits: np.ndarray, ids: np.ndarray | slice = slice(None)) -> np.ndarray:
    """log softmax of one token's logits [V] float32 at some ids, or at all: float32; no other row changes a bit."""
    top = logits.max()
    total = np.exp(logits - top).sum(dtype=np.float64)
    return (logits[ids] - top) - np.float32(math.log(total))


def judged(token: int, logits: np.ndarray, block_max: np.ndarray, top: int) -> Chosen:
    """A token with its log-probability and the `top` most likely ones; block_max: as in `model.Logits`."""
    ids = largest(logits, block_max, top) if top else np.empty(0, np.int64)
    own, *others = log_probs(logits, np.append(token, ids)).tolist()
    return Chosen(token, own, tuple(zip(ids.tolist(), others, strict=True)))
