"""The last line of the terminal: a bar stands there, or lines are printed there, never both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LATEST = 0.2
"""Seconds that the end of the process waits for a drawing."""


class LastLine:
    """Where a bar of progress may stand (cli/bars.py); whatever is printed takes it away first (cli/console.py).

    Threads draw and print, one at a time.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._console: Any = None
        self._text = ""

    def show(self, console: Any, text: str) -> None:
        """A text of one line in place of what stands there. console: Rich's, which knows the terminal."""
        from rich.text import Text

        with self.lock, suppress(OSError, ValueError), console:  # within `console` all of it is one write
            if self._console is not None and text == self._text:
                return
            self.clear()
            line = Text(text, no_wrap=True, overflow="crop")
            line.highlight_regex("[━#]+", "cyan")
            console.print(line, end="")
            self._console, self._text = console, text

    def clear(self) -> None:
        """Nothing stands there."""
        with self.lock:
            if self._console is not None:
                from rich.control import Control
                from rich.segment import ControlType

                with suppress(OSError, ValueError):
                    self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
                self._console = None

    @contextmanager
    def free(self) -> Iterator[None]:
        """Within the block lines may be printed."""
        with self.lock:
            self.clear()
            yield

    def left(self) -> None:
        """The process ends, maybe while another thread draws: that one does not go on."""
        if self.lock.acquire(timeout=LATEST):
            self.clear()


LAST_LINE = LastLine()
"""That of this process."""
