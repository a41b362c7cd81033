"""Printing: answers and tables to stdout, everything else to stderr.

What models, files and callers say is never printed as it is: lapinfer/shown.py makes characters visible that a terminal
would obey. The one exception is an answer that goes to a file or a program, which gets what the model said.
"""

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
from lapinfer.shown import columns, padded, shown, shown_answer, shown_line


def note(message: str) -> None:
    """A line on stderr."""
    note_lines(shown_line(message))


def note_lines(text: str) -> None:
    """Lines on stderr; there may be nobody to read them."""
    with suppress(OSError, ValueError):
        print(shown(text), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Lines on stdout that are no answer: tables, names, figures."""
    print(shown(text), flush=True)


def write_answer(text: str) -> None:
    """A piece of an answer to stdout, as the model gave it where no terminal would obey it."""
    sys.stdout.write(shown_answer(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note_replaced(goes: str | None) -> None:
    """Says which file --force lets go, if there is one."""
    if goes is not None:
        note(replaced(goes))


def print_json(value: Any, on_one_line: bool = False) -> None:
    """A line of its own is seen at once: more of them follow, maybe after a while."""
    from json import dumps

    whole = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    text = dumps(value, ensure_ascii=not whole, indent=None if on_one_line else 1, default=str)
    # DEL, U+009B, directions …
    acting = {character for character in text if character != "\n" and not character.isprintable()}
    print(text.translate({ord(character): dumps(character)[1:-1] for character in acting}), flush=on_one_line)


def print_figures(figures: dict[str, Any], json: bool) -> None:
    """One line per entry, or all of them as a JSON object."""
    if json:
        print_json(figures)
        return
    names = {key: shown_line(key) for key in figures}
    width = max(map(columns, names.values()), default=0)
    for key, value in figures.items():
        _print_wrapped(f"{padded(names[key], width)}  ", shown_line(_in_words(value)))


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key} {inner}" for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _print_wrapped(first: str, text: str) -> None:
    """At a terminal, lines that are too long continue below the text of the first one."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if len(first) + len(text) <= room or room < len(first) + 20:
        print(first + text)
        return
    print(textwrap.fill(text, room, initial_indent=first, subsequent_indent=" " * len(first)))


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
                self._tasks[what] = self._bars.add_task(shown_line(what), total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            what, share = TextColumn("{task.description}", markup=False), TextColumn("{task.percentage:>3.0f}%")
            parts = (what, BarColumn(), share, TimeRemainingColumn())
            self._bars = Progress(*parts, console=Console(stderr=True), transient=True)
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
