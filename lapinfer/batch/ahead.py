"""Reading ahead: items of an iterator that may block, or take long, in a thread of their own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from lapinfer.errors import LapinferError
from lapinfer.parallel import started

T = TypeVar("T")


class Ahead(Generic[T]):
    """Has up to `most` items ready. `changed` is called by the thread whenever there is more to see."""

    def __init__(self, items: Iterable[T], most: int, changed: Callable[[], object]) -> None:
        self._items, self._most, self._told = items, most, changed
        self._ready: deque[T] = deque()
        self._room = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        if started(self._read, name="lapinfer-lines") is None:
            raise LapinferError("the system refuses one more thread (ulimit -u, or the container's limit of processes)")

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._room:
                    self._room.wait_for(lambda: len(self._ready) < self._most or self._closed)
                    if self._closed:
                        return
                    self._ready.append(item)
                self._told()
        except BaseException as error:
            self._error = error
        finally:
            with self._room:
                self._ended = True
            self._told()

    def take(self) -> T | None:
        """The next one; None where there is none now. What reading has raised comes after all items."""
        with self._room:
            if self._ready:
                item = self._ready.popleft()
                self._room.notify()
                return item
            if self._error is not None:
                raise self._error
            return None

    @property
    def is_over(self) -> bool:
        """Whether all were taken, and no more come."""
        with self._room:
            return self._ended and not self._ready and self._error is None

    def close(self) -> None:
        """Read no more. A thread that waits for its input stays until that ends, and then does nothing."""
        with self._room:
            self._closed = True
            self._ready.clear()
            self._room.notify()
