"""Printing: answers and tables to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import Any

from lapinfer.interrupts import KEYBOARD, check
from lapinfer.outputs import replaced


def note(message: str) -> None:
    """A line on stderr; there may be nobody to read it."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def note_replaced(goes: str | None) -> None:
    """Says which file --force lets go, if there is one."""
    if goes is not None:
        note(replaced(goes))


def print_json(value: Any) -> None:
    from json import dumps

    whole = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    print(dumps(value, ensure_ascii=not whole, indent=1, default=str))


def print_figures(figures: dict[str, Any], json: bool) -> None:
    """One line per entry, or all of them as a JSON object."""
    if json:
        print_json(figures)
        return
    width = max(map(len, figures), default=0)
    for key, value in figures.items():
        _print_wrapped(f"{key:<{width}}  ", _in_words(value))


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key} {inner}" for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_wrapped(first: str, text: str) -> None:
    """At a terminal, lines that are too long continue below the text of the first one."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if len(first) + len(text) <= columns or columns < len(first) + 20:
        print(first + text)
        return
    print(textwrap.fill(text, columns, initial_indent=first, subsequent_indent=" " * len(first)))


class Progress:
    """progress("packing", done, total) moves a bar on stderr if that is a terminal; progress("…") prints a line."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: float | None = None, total: float | None = None) -> None:
        check()
        if done is None:
            note(what)
        elif self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            KEYBOARD.before_end = _show_cursor
            try:
                self._bars.start()
            except RuntimeError:  # no thread can be had for them
                self._bars = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        KEYBOARD.before_end = None


def _show_cursor() -> None:
    """A bar hides it."""
    os.write(sys.stderr.fileno(), b"\r\x1b[2K\x1b[?25h")
