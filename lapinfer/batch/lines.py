"""Lines of a batch, as they stand in its file: read one after the other, however large the file is."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lapinfer.errors import InputError
from lapinfer.options import ServeOptions
from lapinfer.texts import MARKS

STDIN = "-"
"""The name that stands for stdin, and for stdout."""
LONGEST = int(ServeOptions().body * 1e6)
"""Bytes of a line, as of the body that a server takes."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its number in the file, from 1, and its JSON. Of one that is too long, the beginning alone.

    It can be pickled, and everything that its answer depends on stands in it, so it may be answered anywhere.
    """

    number: int
    text: bytes

    @property
    def is_too_long(self) -> bool:
        return len(self.text) > LONGEST

    @property
    def digest(self) -> int:
        """64 bits of SHA-256, which tell whether a line of that number is the one that was answered."""
        return int.from_bytes(hashlib.sha256(self.text).digest()[:8], "big")


class Source(Protocol):
    """Where lines come from. name: for messages. again: whether `lines` can be read more than once."""

    name: str
    again: bool

    def lines(self) -> Iterator[Line]:
        """Those that are not empty, in their order, from the first one on."""
        ...


class TextFile:
    """Lines of a file, or of stdin. Where it is no JSON Lines but plain text (.txt), each line is a prompt."""

    def __init__(self, path: str) -> None:
        self.name = "stdin" if path == STDIN else path
        self._path = path
        self._plain = Path(path).suffix.lower() == ".txt"
        self.again = path != STDIN and not _is_stream(path)
        if self.again:
            self._opened().close()

    def lines(self) -> Iterator[Line]:
        """InputError where the file cannot be read, or is not in UTF-8 by its mark."""
        with self._opened() as file:
            for number, text in enumerate(_texts(file, self.name), 1):
                if self._plain:
                    text = _quoted(text)
                if text:
                    yield Line(number, text)

    def _opened(self) -> BinaryIO:
        if self._path == STDIN:
            return open(sys.stdin.fileno(), "rb", closefd=False) if _has_number() else sys.stdin.buffer
        try:
            return open(self._path, "rb")
        except OSError as error:
            raise cannot_read(self._path, error) from error


def _has_number() -> bool:
    """Whether stdin is a file of the system, and nothing that stands for one in a test."""
    try:
        return sys.stdin.fileno() >= 0
    except (OSError, ValueError, io.UnsupportedOperation):
        return False


def _is_stream(path: str) -> bool:
    """Whether a name is that of a pipe, which can be read only once."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def cannot_read(path: str, error: OSError) -> InputError:
    """Why a file of lines cannot be read, in one line."""
    return InputError(f"{path}: cannot be read: {error.strerror or error}")


def _texts(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Each line without its end (\\n or \\r\\n) and spaces around it; of one that is too long, its beginning."""
    first = True
    try:
        while text := file.readline(LONGEST + 1):
            if first:
                text, first = _unmarked(text, name), False
            ended = text.endswith(b"\n")
            yield text.strip() if ended or len(text) <= LONGEST else text
            while not ended and (rest := file.readline(1 << 20)):
                ended = rest.endswith(b"\n")
    except OSError as error:
        raise cannot_read(name, error) from error


def _unmarked(text: bytes, name: str) -> bytes:
    """The first line without a byte order mark; InputError for one of another encoding than UTF-8."""
    mark = next((mark for mark in MARKS if text.startswith(mark)), b"")
    if mark and mark != codecs.BOM_UTF8:
        raise InputError(f"{name}: expected UTF-8, got {MARKS[mark].upper()}: convert it (iconv -t UTF-8)")
    return text[len(mark) :]


def _quoted(text: bytes) -> bytes:
    """Plain text as JSON; what is no text stays as it is, and is told as such."""
    from pydantic_core import to_json

    try:
        return to_json(text.decode()) if text and len(text) <= LONGEST else text
    except UnicodeDecodeError:
        return text
