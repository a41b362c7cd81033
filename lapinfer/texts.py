"""Text from outside: bytes of files and pipes as the characters that were meant. Standard library alone."""

from __future__ import annotations

import codecs
from pathlib import Path

from lapinfer.errors import InputError

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Encodings by the byte order mark that says so: Windows PowerShell writes UTF-16."""


def decoded(data: bytes, source: str) -> str:
    """The text in bytes, lines ended by \\n alone; a byte order mark chooses the encoding, else it is UTF-8.

    InputError that names the source and the byte for what is no text.
    """
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    try:
        text = data[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        name = "UTF-8" if "8" in error.encoding else error.encoding.upper()
        raise InputError(
            f"{source}: not {name} text: byte {len(mark) + error.start} is 0x{error.object[error.start]:02x} "
            f"({error.reason}); convert it (iconv -t UTF-8)"
        ) from None
    if (place := text.find("\0")) >= 0:
        raise InputError(f"{source}: not a text: character {place} is NUL; UTF-16 needs a byte order mark")
    return text.replace("\r\n", "\n")


def read_text(path: str | Path) -> str:
    """The text in a file; InputError when it is none."""
    return decoded(Path(path).read_bytes(), str(path))


def without_final_newline(text: str) -> str:
    """A text without the newline that editors and `echo` end it with, as llama.cpp reads a prompt's file (-f)."""
    return text.removesuffix("\n")
