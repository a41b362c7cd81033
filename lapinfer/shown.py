"""What strangers' text becomes where people read it: characters that would act on a terminal or hide there are shown.

An answer, a file's name, or a message that quotes a file may hold any character. Shown as Python writes them (\\x1b,
\\u202e) are control characters (Unicode's Cc: ESC, BEL, backspace, U+0080 to U+009F), what has no look of its own or
moves what is beside it (Cf: directions, tags, zero width), separators of lines (Zl, Zp), and halves of pairs (Cs).
"""

from __future__ import annotations

import html

ACTING = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
"""Unicode's categories of characters that are shown by their number."""
LAID_OUT = frozenset("\n\t")
"""What lays out a text of several lines."""
OF_SCRIPTS = frozenset(
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u061c"
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Of Cf, what writing needs: joiners (emoji, Persian, Hindi), places to break, marks of direction, signs of numbers."""


def shown(text: str, kept: frozenset[str] = LAID_OUT) -> str:
    """A text of one or more lines for a terminal, whose only effect is that it can be read."""
    if text.isprintable():  # nothing but what is shown anyway
        return text
    from unicodedata import category  # takes a millisecond

    text = text.replace("\r\n", "\n") if "\n" in kept else text
    return "".join(
        character if character.isprintable() or character in kept or category(character) not in ACTING
        else f"\\x{ord(character):02x}" if character < "\u0100"
        else f"\\u{ord(character):04x}" if character < "\U00010000"
        else f"\\U{ord(character):08x}"
        for character in text
    )  # fmt: skip


def shown_line(text: str) -> str:
    """A name, or a message of one line, which stays one."""
    return text if text.isprintable() else shown(text.replace("\n", "\\n").replace("\t", "\\t"), frozenset())


def shown_answer(text: str) -> str:
    """A model's text, in any script: a piece of it may be given, as pieces come."""
    return shown(text, LAID_OUT | OF_SCRIPTS)


def escape(text: str) -> str:
    """A line as HTML or XML: of text, or between quotes."""
    return html.escape(shown_line(text))


def columns(text: str) -> int:
    """Places that a line takes in a terminal: characters of East Asian scripts take two, those that combine none."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(c) in ("Mn", "Me", "Cf") else 1 + (east_asian_width(c) in "WF") for c in text)


def padded(text: str, width: int, right: bool = False) -> str:
    """At least `width` places of a terminal; right: the text stands at their end."""
    room = " " * (width - columns(text))
    return room + text if right else text + room
