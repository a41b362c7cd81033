"""Ctrl-C, only where nothing is half done.

Python raises KeyboardInterrupt between any two instructions. LLVM's bindings cannot bear that: where it comes after
LLVM has freed a string and before the binding has noted that, the string is freed again when its object dies, and the
C library ends the process. So native objects are made and freed under `held`, and long work asks `check`.

The command line goes further (`Keyboard`): there the exception is raised at `check` alone, or while nothing is done but
waiting, and everywhere else Ctrl-C ends the process at once, without an exception.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

from lapinfer.parallel import started

EXIT_CODE = 130
"""What shells give for a process that SIGINT has ended."""
LATE = 0.3
"""Seconds by which the thread that sees signals may be behind the main one, which the same signal has woken."""


class _Noted:
    """Whether Ctrl-C was pressed and not raised yet. Signals belong to the process, and so does this."""

    pressed = False


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed while it was held: in the main thread, whose Ctrl-C is."""
    if _Noted.pressed and threading.current_thread() is threading.main_thread():
        _Noted.pressed = False
        raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C within the block is raised at its end, or at `check`; pressed twice, it is raised where it comes.

    Nothing changes in other threads than the main one, which get no signals, or where the program has a handler of
    its own.
    """
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _Noted.pressed:
            default(number, frame)
        _Noted.pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
        check()


class Keyboard:
    """What Ctrl-C does in a process of our own: it ends it with exit code 130, or stops what can be stopped.

        with Keyboard() as keyboard:
            load()                          # Ctrl-C ends the process
            with keyboard.stops():
                answer()                    # it is raised at `check`; pressed twice, it ends the process
            with keyboard.wakes():
                input()                     # it is raised at once

    A thread of its own sees the signal, so the process ends even while the main thread is in machine code.
    """

    def __init__(self) -> None:
        self._mode: Literal["ends", "stops", "wakes"] = "ends"
        self._watched = False
        self._woken = -LATE
        self.before_end: Callable[[], object] | None = None
        """Called when the process ends: what the terminal needs, say."""

    def __enter__(self) -> Keyboard:
        reader, writer = os.pipe()
        if hasattr(os, "set_blocking"):  # Windows has it from Python 3.12 on, and needs it for sockets alone
            os.set_blocking(writer, False)
        self._watched = started(self._watch, reader, name="lapinfer-keyboard") is not None
        if self._watched:
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        """Python's end follows, in which Ctrl-C ends the process as it does without a handler."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)

    @contextmanager
    def stops(self) -> Iterator[None]:
        """Within the block Ctrl-C is raised at the next `check`; what came after the last one counts at the end."""
        before, self._mode = self._mode, "stops"
        try:
            yield
            check()
        finally:
            self._mode, _Noted.pressed = before, False

    @contextmanager
    def wakes(self) -> Iterator[None]:
        """Within the block, in which nothing is done but waiting, Ctrl-C is raised at once."""
        before, self._mode = self._mode, "wakes"
        try:
            yield
        finally:
            self._mode = before

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within the block an event loop may see signals: it asks Python to wake itself instead, and leaves that so."""
        handler, wakened = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._mode == "wakes":
            self._woken = time.monotonic()
            raise KeyboardInterrupt
        if not self._watched:
            self._press()

    def _watch(self, reader: int) -> None:
        while signals := os.read(reader, 1):
            # The main thread may have been woken, and have left the block, before this one runs.
            woken = self._mode == "wakes" or time.monotonic() - self._woken < LATE
            if signals[0] == signal.SIGINT and not woken:
                self._press()

    def _press(self) -> None:
        if self._mode == "stops" and not _Noted.pressed:
            _Noted.pressed = True
            return
        with suppress(Exception):
            if self.before_end is not None:
                self.before_end()
        os._exit(EXIT_CODE)


KEYBOARD = Keyboard()
"""That of this process; it does nothing before the command line enters it."""
