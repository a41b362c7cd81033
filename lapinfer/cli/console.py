"""Printing: answers and tables to stdout, everything else to stderr.

What models, files and callers say is never printed as it is: lapinfer/shown.py makes characters visible that a terminal
would obey. The one exception is an answer that goes to a file or a program, which gets what the model said.
"""

from __future__ import annotations

import codecs
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import Any

from lapinfer.cli.last_line import LAST_LINE
from lapinfer.digits import number
from lapinfer.outputs import replaced
from lapinfer.shown import columns, padded, shown, shown_answer, shown_line


def note(message: str) -> None:
    """A line on stderr."""
    note_lines(shown_line(message))


def note_lines(text: str) -> None:
    """Lines on stderr; there may be nobody to read them."""
    with LAST_LINE.free(), suppress(OSError, ValueError):
        print(shown(text), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Lines on stdout that are no answer: tables, names, figures."""
    with LAST_LINE.free():
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
    with LAST_LINE.free():
        print(text.translate({ord(character): dumps(character)[1:-1] for character in acting}), flush=on_one_line)


def print_figures(figures: dict[str, Any], json: bool) -> None:
    """One line per entry, or all of them as a JSON object."""
    if json:
        print_json(figures)
        return
    names = {key: shown_line(key) for key in figures}
    width = max(map(columns, names.values()), default=0)
    for key, value in figures.items():
        print_wrapped(f"{padded(names[key], width)}  ", shown_line(_in_words(value)))


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_a_list(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_a_list, value))
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _in_a_list(value: Any) -> str:
    """Commas stand between its values, so none stand in them."""
    return number(value).replace(",", "") if isinstance(value, float) else str(value)


def print_wrapped(first: str, text: str) -> None:
    """At a terminal, lines that are too long continue below the text of the first one."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if len(first) + len(text) <= room or room < len(first) + 20:
        print(first + text)
        return
    print(textwrap.fill(text, room, initial_indent=first, subsequent_indent=" " * len(first)))
