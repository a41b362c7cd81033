"""Prompts that begin alike, and come together: one reads the beginning, the others wait for it and copy."""

from __future__ import annotations

from collections.abc import Sequence

from lapinfer.text.decoding import Decoding, common
from lapinfer.text.prefix_files import SHORTEST


class Followers:
    """Which of the sequences that share steps waits for which, until its slot holds how many ids."""

    def __init__(self) -> None:
        self._leaders: dict[Decoding, tuple[Decoding, int]] = {}

    def add(self, new: Decoding, before: Sequence[Decoding]) -> None:
        """Let a prompt wait for the one of those before it that reads most of its beginning, if that takes a while."""
        if new.conversation.beginnings is None or new.scores is not None:
            return  # it takes nothing from other slots
        best, leader = 0, None
        for each in before:
            if not each.steps:
                agreed = min(common(each.ids, new.ids), len(new.ids) - 1)
                if agreed > best and agreed >= each.position + SHORTEST:
                    best, leader = agreed, each
        if leader is not None:
            leader.stop_at(best)
            self._leaders[new] = leader, best

    def waiting(self, running: Sequence[Decoding]) -> set[Decoding]:
        """Those that still wait; the others hold what they could have. The model's lock is held."""
        self._leaders = {each: leads for each, leads in self._leaders.items() if each in running}
        for place, each in enumerate(running):
            if each not in self._leaders:
                continue
            leader, count = self._leaders[each]
            if leader not in running:
                del self._leaders[each]
                self.add(each, running[:place])
            elif not leader.steps and leader not in self._leaders:
                leader.begin()  # what both begin with may be in the store
            if each in self._leaders and (leader.steps or leader.position >= count):
                del self._leaders[each]
            if each not in self._leaders:
                each.begin()  # now: what the leader holds may be gone after its next step
        return set(self._leaders)
