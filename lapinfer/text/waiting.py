"""Who waits for a slot, in a fair order: clients with fewest come first, and the items of each in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Items of clients. Of those with equally much, whoever was served comes after all others that wait then."""

    def __init__(self) -> None:
        self._of: dict[str, deque[Item]] = {}  # clients that have items, the next one first

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._of.values() for item in items)

    def add(self, client: str, item: Item) -> None:
        """Let an item wait."""
        self._of.setdefault(client, deque()).append(item)

    def take(self, held: Mapping[str, int]) -> Item:
        """The next one, which waits no longer; there must be one. held: how much each client has already."""
        client = min(self._of, key=lambda client: held.get(client, 0))
        items = self._of[client]
        del self._of[client]
        item = items.popleft()
        if items:
            self._of[client] = items
        return item

    def remove(self, client: str, item: Item) -> bool:
        """Let an item wait no longer; whether it did."""
        items = self._of.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._of[client]
        return True
