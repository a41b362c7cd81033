"""Lines on their way to engines: who has them, and which must be given out again."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from lapinfer.batch.lines import Line
from lapinfer.errors import LapinferError
from lapinfer.parallel import started

GROUP = 16
"""Lines that travel together, at most: each group costs some milliseconds of this process."""
GROUP_SECONDS = 1.0
"""That a group should keep an engine busy: slow lines travel alone, so that all engines end at about the same time."""


class Feed:
    """An actor that has the groups of lines that are out, by their numbers, until they are done.

    A reader that starts again, since its process has died, gets the same groups again, and those that are done empty.
    """

    def __init__(self) -> None:
        self._groups: dict[int, bytes] = {}
        self._count, self._ended = 0, False
        self._changed = asyncio.Condition()

    async def put(self, group: bytes | None) -> None:
        """The next group; None: there are no more."""
        async with self._changed:
            if group is None:
                self._ended = True
            else:
                self._groups[self._count] = group
                self._count += 1
            self._changed.notify_all()

    async def get(self, index: int) -> bytes | None:
        """A group, empty for one that is done; None after the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: index < self._count or self._ended)
            return self._groups.get(index, b"") if index < self._count else None

    async def done(self, index: int) -> None:
        self._groups.pop(index, None)


def unpacked(group: bytes) -> list[Line]:
    """The lines of a group, as this process's own feed has them."""
    return pickle.loads(group) if group else []


class Giving:
    """Gives lines out in groups, in a thread, as many at once as may be out; knows which did not come back.

    put: takes a group, pickled, or None after the last one. most: lines that may be out. engines: how many share them.
    """

    def __init__(
        self, lines: Iterable[Line], put: Callable[[bytes | None], object], *, most: int, engines: int, group: int
    ) -> None:
        self._lines, self._put, self._most, self._engines = iter(lines), put, most, engines
        self._largest, self._size = group, 1
        self._out: dict[int, Line] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._kept: list[Line] = []
        self._began, self._back = 0.0, 0
        self.error: BaseException | None = None
        self._thread = started(self._give, name="lapinfer-lines")
        if self._thread is None:
            raise LapinferError("the system refuses one more thread (ulimit -u, or the container's limit of processes)")

    def _give(self) -> None:
        group: list[Line] = []
        try:
            for line in self._lines:
                with self._changed:
                    if group and len(self._out) >= self._most:
                        self._send(group)
                    self._changed.wait_for(lambda: len(self._out) < self._most or self._closed)
                    if self._closed:
                        self._kept = [line]
                        return
                    self._out[line.number] = line
                    group.append(line)
                    if len(group) >= self._size:
                        self._send(group)
            if group:
                self._send(group)
        except BaseException as error:
            self.error = error
        finally:
            self._put(None)

    def _send(self, group: list[Line]) -> None:
        self._put(pickle.dumps(group))
        group.clear()

    def took_back(self, number: int) -> bool:
        """Whether a line was out, whose record has come: it is so once."""
        with self._changed:
            if self._out.pop(number, None) is None:
                return False
            now = time.monotonic()
            self._began, self._back = self._began or now, self._back + 1
            rate = self._back / max(now - self._began, 1e-3) / self._engines
            self._size = max(1, min(int(rate * GROUP_SECONDS), self._largest)) if self._back > 1 else 1
            self._changed.notify_all()
            return True

    def close(self) -> Iterator[Line]:
        """Give out no more; lines that are left: those that did not come back, and those that were not given out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        return chain([*self._out.values(), *self._kept], self._lines)

    @property
    def lost(self) -> list[Line]:
        """Lines that are out."""
        return [*self._out.values()]
