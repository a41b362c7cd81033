"""Markdown on a terminal while it comes: it is only ever appended to, a word at a time.

Nothing is drawn twice, so nothing flickers, and an answer may be longer than the screen. What that costs: a table stays
as it was written, and emphasis that does not end is emphasis to the end of its line.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable

from lapinfer.shown import columns, shown_answer

OPENING = re.compile(r"(?P<fence> {0,3}(`{3,}|~{3,}))|(?P<table> {0,3}\|)")
"""Of lines that are left as they are."""
HEADING = re.compile(r" {0,3}#{1,6} +$")
ITEM = re.compile(r"(\s*)([-*+]|\d{1,4}[.)]) +$")
QUOTE = re.compile(r" {0,3}> ?$")
RULE = re.compile(r" {0,3}([-*_])(\s*\1){2,}\s*$")
HELD = frozenset(" \t#-*+_.)>`~|0123456789")
"""Characters that may begin what shows what a line is."""
BOLD, ITALIC, CODE = "1", "3", "36"
"""SGR parameters (ECMA-48, 8.3.117): 36 is cyan."""
LEAST = 20
"""Columns below which nothing is wrapped."""


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class MarkdownPen:
    """Writes pieces of an answer; `lift` writes what is held back of a word or a line's beginning.

    styled: with bold and colour, and without the marks for them; else marks stay, and only lines are wrapped. width: of
    the terminal, asked at each line.
    """

    def __init__(
        self,
        put: Callable[[str], None] = _to_stdout,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
        styled: bool | None = None,
    ) -> None:
        self._put, self._width = put, width
        self._styled = not os.environ.get("NO_COLOR") if styled is None else styled
        self._out: list[str] = []
        self._fence = ""  # what ends the block of code that we are in
        self._begin()

    def _begin(self) -> None:
        """A new line."""
        self._start: str | None = ""  # its beginning, until it is known what line it is
        self._as_is = False  # the rest of it, too
        self._room = self._width() - 1  # no terminal is asked what it does after its last column
        self._column, self._indent = 0, ""
        self._base = ""  # the style of all of it
        self._styles: set[str] = set()
        self._word: list[tuple[str, str]] = []  # (style, text)
        self._spaces, self._marks, self._before, self._escaped = "", "", " ", False

    def write(self, text: str) -> None:
        for character in shown_answer(text):
            self._character(character)
        self._flush()

    def lift(self) -> None:
        if self._start is not None:
            self._know(self._start, at_end=True)
        self._end_of_marks(" ")
        self._end_of_word()
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._put("".join(self._out))
            self._out.clear()

    def _character(self, character: str) -> None:
        if character == "\n":
            if self._start is not None:
                self._know(self._start, at_end=True)
            self._end_of_marks(" ")
            self._end_of_word()
            self._out.append("\n")
            self._begin()
        elif self._start is None:
            self._inline(character)
        elif character in HELD and not OPENING.match(self._start):
            self._start += character
        elif self._fence or not OPENING.match(self._start + character) or self._start.lstrip()[:1] == "|":
            self._know(self._start, at_end=False)
            self._inline(character)
        else:  # the language of a block of code
            self._start += character

    def _know(self, start: str, at_end: bool) -> None:
        """The beginning of a line says what line it is; at_end: there is no more of it."""
        self._start = None
        opening = OPENING.match(start)
        if self._fence:
            if at_end and start.strip().startswith(self._fence) and not start.strip().strip(self._fence[0]):
                self._fence = ""
            self._as_is, self._base = True, CODE
        elif opening and opening["fence"] and at_end:
            self._fence, self._as_is, self._base = opening["fence"].strip(), True, CODE
        elif opening and opening["table"]:
            self._as_is = True
        elif at_end and RULE.match(start):
            start = "─" * max(min(self._room, 40), 3) if self._styled else start
            self._as_is = True
        elif HEADING.match(start):
            self._base, start = BOLD, "" if self._styled else start
        elif match := ITEM.match(start):
            mark = "•" if self._styled and match[2] in "-*+" else match[2]
            start = f"{match[1]}{mark} "
            self._indent = " " * len(start)
        elif QUOTE.match(start):
            start = self._indent = "│ " if self._styled else "> "
        elif not start.strip():
            self._indent = start
        else:
            for character in start:
                self._inline(character)
            return
        self._emit(start)

    def _inline(self, character: str) -> None:
        if self._as_is:
            self._emit(character)
        elif self._escaped:
            self._escaped = False
            if character.isalnum() or character == " ":
                self._add("\\")
            self._text(character)
        elif not self._styled:
            self._text(character)
        elif character == "\\" and CODE not in self._styles:
            self._end_of_marks(character)
            self._escaped = True
        elif character == "*" and CODE not in self._styles:
            self._marks += character
        else:
            self._end_of_marks(character)
            if character == "`":
                self._styles ^= {CODE}
                self._before = character
            else:
                self._text(character)

    def _end_of_marks(self, after: str) -> None:
        """Stars open what comes after them, or close what came before, or are stars."""
        marks, self._marks = self._marks, ""
        if self._escaped and after == " ":
            self._escaped = False
            self._add("\\")
        if not marks:
            return
        styles = {1: {ITALIC}, 2: {BOLD}, 3: {BOLD, ITALIC}}.get(len(marks))
        closes = styles is not None and styles <= self._styles and not self._before.isspace()
        opens = styles is not None and not styles & self._styles and not after.isspace()
        if styles is not None and (closes or opens):
            self._styles ^= styles
            self._before = "*"
        else:
            for mark in marks:
                self._text(mark)

    def _text(self, character: str) -> None:
        self._before = character
        if character in " \t":
            self._end_of_word()
            self._spaces += character
        elif (wide := columns(character) == 2) or len(self._word) >= max(self._room, LEAST):
            if wide:  # scripts without spaces, which break anywhere
                self._end_of_word()
            self._add(character)
            self._end_of_word()
        else:
            self._add(character)

    def _add(self, character: str) -> None:
        style = ";".join(sorted({self._base, *self._styles} - {""}))
        self._word.append((style, character))

    def _end_of_word(self) -> None:
        if not self._word:
            return
        width = columns("".join(text for _, text in self._word))
        spaces, self._spaces = self._spaces, ""
        if self._column + len(spaces) + width > self._room >= LEAST and self._column > len(self._indent):
            self._out.append("\n")
            self._column = 0
            spaces = self._indent if len(self._indent) < self._room // 2 else ""
        self._emit(spaces, plain=True)
        runs: list[list[str]] = []
        for style, text in self._word:
            if runs and runs[-1][0] == style:
                runs[-1][1] += text
            else:
                runs.append([style, text])
        self._word = []
        for style, text in runs:
            self._out.append(f"\x1b[{style}m{text}\x1b[0m" if style and self._styled else text)
        self._column += width

    def _emit(self, text: str, plain: bool = False) -> None:
        """Text that is not wrapped."""
        styled = text and self._base and self._styled and not plain
        self._out.append(f"\x1b[{self._base}m{text}\x1b[0m" if styled else text)
        self._column += columns(text)
