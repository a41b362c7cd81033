"""What slots need not read again: beginnings of texts that another slot holds, or that are kept in memory or in files.

Restored or copied, they have the bits that reading them would give, so nothing but the time depends on where they come
from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lapinfer.text.decoding import Conversation, common, reusable
from lapinfer.text.prefix_files import SHORTEST
from lapinfer.text.prefixes import Known, PrefixStore, Tier, is_as_loaded

if TYPE_CHECKING:
    from lapinfer.model import Model
    from lapinfer.runtime.slots import SlotState

COPIED, IN_MEMORY, ON_DISK = 0.01, 0.03, 0.1
"""What bringing a token costs, in tokens that are read, or less (bench/prefixes.py)."""
OPENED = 8.0
"""What opening a file costs."""
GROWN = 8
"""A text is kept again when it has grown by one part of so many: at most so many times what is new is written."""


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A way to have the first `count` ids in a slot. cost: in tokens that are read."""

    cost: float
    count: int
    bring: Callable[[], bool]
    """Does it, and tells whether that was possible."""
    tier: str


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """Where beginnings of texts came from since the model was loaded, and how many texts had none (misses).

    slots: what the slot, or another one, still held.
    """

    slots: Tier
    memory: Tier
    disk: Tier
    misses: int


class Reuse:
    """The beginnings that a model's slots hold, and those of its store, if it has one."""

    def __init__(self, model: Model, store: PrefixStore | None = None) -> None:
        self._model, self.store = model, store
        self.conversations = [Conversation(beginnings=self) for _ in range(model.slots)]
        self._counts: dict[str, tuple[int, int]] = dict.fromkeys(("slots", "memory", "disk"), (0, 0))
        self._misses = 0
        self._has_rings = any(layer.window is not None for layer in model.spec.layers)

    def stats(self) -> ReuseStats:
        """What was brought so far, and how much is kept."""
        memory, disk = (0, 0) if self.store is None else self.store.nbytes()

        def tier(name: str, nbytes: int) -> Tier:
            hits, tokens = self._counts[name]
            return Tier(hits, tokens, nbytes)

        return ReuseStats(tier("slots", 0), tier("memory", memory), tier("disk", disk), self._misses)

    def bring(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        """As `Beginnings.bring`: by what costs least, with what is left to read."""
        held, whole = self.conversations[slot].ids, ids
        ids = ids[: most + 1]
        own = reusable(self._model, slot, held, ids)
        sources, known = [_Source(0.0, own, lambda: True, "slots")], None
        if is_as_loaded(self._model):  # else what a slot holds depends on other texts, too
            known = None if self.store is None else self.store.known(ids)
            sources += [*self._others(slot, ids), *self._stored(slot, ids, known)]
        stops = self._stops(whole, known)
        for source in sorted(sources, key=lambda source: (source.cost - source.count, source.cost)):
            if source.count < len(held):
                self.keep(slot)  # what follows is about to be overwritten
            if source.bring():
                self.conversations[slot].ids = list(ids[: source.count])
                self._count(source)
                return [stop for stop in stops if stop == len(whole) or stop >= source.count + SHORTEST]
        raise AssertionError("the slot's own ids are always there")

    def keep(self, slot: int) -> None:
        """Keep what a slot holds, if that is much more than is kept of its text."""
        store, ids = self.store, self.conversations[slot].ids
        if store is None or len(ids) < SHORTEST or not self._model.holds(slot, len(ids)):
            return
        if not is_as_loaded(self._model):
            return
        known = store.known(ids)
        if len(ids) - max(known.memory, known.disk) >= max(SHORTEST, len(ids) // GROWN):
            with suppress(MemoryError):
                store.add(ids, self._model.save_slot(slot, len(ids)))

    def close(self) -> None:
        """Keep what slots hold, and let the model go."""
        with self._model.lock:
            for slot, conversation in enumerate(self.conversations):
                if self.store is not None and self.store.has_files:
                    self.keep(slot)
                conversation.beginnings = None
        if self.store is not None:
            self.store.close()

    def _others(self, slot: int, ids: Sequence[int]) -> list[_Source]:
        """What other slots have of the beginning."""
        found: list[_Source] = []
        for other, conversation in enumerate(self.conversations):
            count = common(conversation.ids, ids)
            if other != slot and self._model.holds(other, count):
                bring = partial(self._copied, other, slot, count)
                found.append(_Source(COPIED * count, min(count, len(ids) - 1), bring, "slots"))
        return found

    def _copied(self, other: int, slot: int, count: int) -> bool:
        self._model.copy_slot(other, slot, count)
        return True

    def _stored(self, slot: int, ids: Sequence[int], known: Known | None) -> list[_Source]:
        """What the store has of it."""
        store, most = self.store, len(ids) - 1
        if store is None or known is None:
            return []

        def restored(find: Callable[[Sequence[int]], SlotState | None], count: int) -> bool:
            with suppress(MemoryError):
                state = find(ids)
                # Other than what is known: a file was damaged, or another process has written or removed some.
                if state is not None and state.count == count:
                    self._model.restore_slot(slot, state)
                    return True
            return False

        memory, disk = known.memory, known.disk
        return [
            _Source(IN_MEMORY * memory, min(memory, most), partial(restored, store.from_memory, memory), "memory"),
            _Source(OPENED + ON_DISK * disk, min(disk, most), partial(restored, store.from_disk, disk), "disk"),
        ]

    def _stops(self, ids: Sequence[int], known: Known | None) -> list[int]:
        """Where to keep what a slot holds: at the end, and where another text was the same up to there, if it is lost
        later, because windows, convolutions and recurrences move on.
        """
        if known is None:
            return []
        fork = max(known.agreeing, *(common(conversation.ids, ids) for conversation in self.conversations))
        return [fork, len(ids)] if self._has_rings and fork < len(ids) else [len(ids)]

    def _count(self, source: _Source) -> None:
        if source.count == 0:
            self._misses += 1
            return
        hits, tokens = self._counts[source.tier]
        self._counts[source.tier] = hits + 1, tokens + source.count


def slot_for(conversations: Sequence[Conversation], free: Iterable[int], ids: Sequence[int]) -> int:
    """The free slot in which least is lost when it holds `ids`; of these, the one that holds most of them.

    What other slots hold is copied, and what is overwritten would be read again.
    """

    def loss(slot: int) -> tuple[int, int]:
        held = conversations[slot].ids
        agreed = common(held, ids)
        return len(held) - agreed, -agreed

    return min(sorted(free), key=loss)
