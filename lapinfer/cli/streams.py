"""stdin, stdout and stderr as they must be before a command runs: there, and without characters that are errors."""

from __future__ import annotations

import codecs
import os
import sys
from collections import Counter

from lapinfer.cli.console import note


def prepare_streams() -> None:
    """Give this process the three streams that it was started without, and let no character be an error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("lapinfer", _shown_as)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "lapinfer"), (sys.stderr, "lapinfer")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]


_lost: Counter[str] = Counter()
"""Characters that were not shown, by the encoding that lacks them."""


def _shown_as(error: UnicodeError) -> tuple[str | bytes, int]:
    """A ? for each character that a stream's encoding lacks; bytes of file names that were no text, as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in text):
        return text.encode("ascii", "surrogateescape"), error.end
    _lost[error.encoding] += len(text)
    return "?" * len(text), error.end


def tell_of_lost_characters() -> None:
    """A line about characters that were not shown, if there were any."""
    for encoding, count in list(_lost.items()):
        note(f"note: {count} characters that {encoding} lacks were written as ?; PYTHONIOENCODING=utf-8 keeps them")
