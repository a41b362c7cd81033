"""Writes prefixes to files in a thread of its own, so that no step waits for a disk."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from lapinfer.parallel import started
from lapinfer.runtime.slots import SlotState
from lapinfer.text.prefix_files import PrefixFiles

MOST_WAITING = 256_000_000
"""Bytes that may wait to be written; what comes then is not. One state may always wait."""
CLOSING = 10.0
"""Seconds that an end waits for what is not written yet."""

IDLE = 2.0
"""Seconds without work after which the thread ends: a store that nobody closes leaves none."""


class PrefixWriter:
    """Adds states to files, in the order in which they come."""

    def __init__(self, files: PrefixFiles) -> None:
        self._files = files
        self._changed = threading.Condition()
        self._waiting: deque[tuple[np.ndarray, SlotState]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, ids: np.ndarray, state: SlotState) -> bool:
        """Let it be written soon; False where too much waits already, or no thread is to be had."""
        with self._changed:
            waiting = sum(state.nbytes for _, state in self._waiting)
            if self._closed or (self._waiting and waiting + state.nbytes > MOST_WAITING):
                return False
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                self._thread = started(self._run, name="lapinfer-prefixes")
                if self._thread is None:
                    return False
            self._waiting.append((ids, state))
            self._changed.notify_all()
            return True

    def flush(self, seconds: float = CLOSING) -> bool:
        """Whether all has been written, or refused, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting or not self._alive(), seconds)

    def close(self) -> None:
        """Write what waits, for a while, and no more."""
        self.flush()
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed, IDLE)
                if not self._waiting:  # the next one begins another thread
                    self._thread = None
                    return
                ids, state = self._waiting[0]
            try:
                self._files.add(ids, state)
            finally:  # what fails is not tried again
                with self._changed:
                    if self._waiting:
                        self._waiting.popleft()
                    self._changed.notify_all()
