"""Batches: several generations, all known at the beginning, in shared steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from lapinfer.errors import LapinferError
from lapinfer.text.decoding import Conversation
from lapinfer.text.shared_steps import Asked, Event, Running, SharedSteps
from lapinfer.text.speculation import Speculation

if TYPE_CHECKING:
    from lapinfer.model import Model


E = TypeVar("E", bound=Event)


def stream_batch(
    model: Model,
    requests: Sequence[Asked[E]],
    conversations: Sequence[Conversation],
    speculation: Speculation | None = None,
) -> Iterator[tuple[int, E]]:
    """(index of the request, event), as steps bring them; requests begin in their order.

    conversations: what each slot of the model holds; speculation: see `SharedSteps`. A request without a free slot
    waits for one. An error of one of them ends the batch.
    """
    began, waiting = time.perf_counter(), deque(enumerate(requests))
    steps = SharedSteps(model, conversations, speculation)
    indices: dict[Running, int] = {}
    while waiting or steps.running:
        while waiting and steps.free:
            index, request = waiting.popleft()
            indices[steps.begin(request, began)] = index
        for each, event in steps.step():
            if isinstance(event, LapinferError):
                raise event
            yield indices[each], event
