"""Which replica has read the beginning of a prompt, and which has least to do: work is counted in characters.

A request goes where the least is left to do before it ends: what that replica has under way, and what it has not read
of this prompt. So requests with a common beginning meet where it was read, until others have so much less to do that
reading it once more is quicker; without one, the least loaded replica gets a request.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)
BLOCK = 128
"""Characters of a prompt that are known or not: some 30 tokens."""
MOST_BLOCKS = 1024
"""Of a prompt, that are told apart: what is longer is compared as far as these go."""
KEPT = 100_000
"""Beginnings that are remembered: 13 MB of texts, though only their digests are."""
ANSWER = 512
"""Characters that are read in the time by which an answer under way delays another: these share their steps."""
TURN = 32 * ANSWER
"""The same for a request that must wait until one of as many as there are slots has ended."""
FIELDS = ("tools", "instructions", "system", "messages", "input", "prompt")
"""What prompts are made of, in all protocols, in the order in which templates have it."""


def blocks(body: bytes) -> tuple[int, ...]:
    """Digests of the beginnings of a request's prompt, each a block longer; none of what has no prompt.

    The body is a JSON object of any protocol; what is none, or not whole, has none: its replica says so.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(asked, Mapping):
        return ()
    parts = [json.dumps(asked[name]) for name in FIELDS if asked.get(name)]
    if not parts:
        return ()
    text, digest = "\n".join(parts), hashlib.blake2b(json.dumps(asked.get("model")).encode(), digest_size=8)
    found: list[int] = []
    for start in range(0, min(len(text) - BLOCK, MOST_BLOCKS * BLOCK) + 1, BLOCK):
        digest.update(text[start : start + BLOCK].encode())
        found.append(int.from_bytes(digest.digest(), "big"))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class UnderWay(Generic[R]):
    """A request that a replica has. unread: the blocks of its prompt that were not read there before."""

    replica: R
    unread: Sequence[int]

    def work_beside(self, prompt: Collection[int]) -> int:
        """What it delays another request by; what both read is read once."""
        common = bisect_left(self.unread, True, key=lambda digest: digest not in prompt)
        return ANSWER + (len(self.unread) - common) * BLOCK


class Work(Generic[R]):
    """What replicas have under way and have read. slots: requests that a replica answers at once. One thread's."""

    def __init__(self, slots: int, kept: int = KEPT) -> None:
        self._slots, self._kept = slots, kept
        self._read: OrderedDict[int, dict[R, None]] = OrderedDict()
        self._under_way: dict[str, UnderWay[R]] = {}
        self._turn: dict[R, int] = {}
        self._turns = 0

    def best(self, replicas: Iterable[R], prompt: Sequence[int]) -> list[R]:
        """These replicas, the one that would be done first before others; of equals, the one that waited longest."""
        there = list(replicas)
        known, count, work = self._known(prompt), dict.fromkeys(there, 0), dict.fromkeys(there, 0)
        own = frozenset(prompt)
        for each in self._under_way.values():
            if each.replica in count:
                count[each.replica] += 1
                work[each.replica] += each.work_beside(own)

        def cost(replica: R) -> tuple[int, int]:
            unread = (len(prompt) - known.get(replica, 0)) * BLOCK
            waiting = max(count[replica] + 1 - self._slots, 0) * TURN
            return work[replica] + waiting + unread, self._turn.get(replica, -1)

        return sorted(there, key=cost)

    def begun(self, request: str, replica: R, prompt: Sequence[int]) -> None:
        """A request went to a replica, which will have read its prompt."""
        self._under_way[request] = UnderWay(replica, prompt[self._known(prompt).get(replica, 0) :])
        self._turn[replica], self._turns = self._turns, self._turns + 1
        for digest in reversed(prompt):  # so the first block is the last one to be forgotten
            self._read.setdefault(digest, {})[replica] = None
            self._read.move_to_end(digest)
        while len(self._read) > self._kept:
            self._read.popitem(last=False)

    def ended(self, request: str) -> None:
        """It is over, however that came."""
        self._under_way.pop(request, None)

    def only(self, replicas: Iterable[R]) -> None:
        """These are there: of others, nothing is known any more."""
        for gone in self._turn.keys() - set(replicas):
            del self._turn[gone]
            for readers in self._read.values():
                readers.pop(gone, None)

    def _known(self, prompt: Sequence[int]) -> dict[R, int]:
        """Blocks at the beginning of a prompt that each replica has read."""
        known: dict[R, int] = {}
        for before, digest in enumerate(prompt):
            readers = self._read.get(digest)
            if not readers:
                break
            for replica in readers:
                if known.get(replica, 0) == before:
                    known[replica] = before + 1
        return known
