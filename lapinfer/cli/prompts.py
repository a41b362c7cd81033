"""The prompt, as arguments and stdin have it together."""

from __future__ import annotations

import os
import select
import sys

from lapinfer.cli.console import note
from lapinfer.errors import InputError
from lapinfer.interrupts import KEYBOARD
from lapinfer.texts import decoded, without_final_newline

MOST = 1 << 26
"""Bytes of a prompt: 4 million tokens or more, whose keys and values no laptop holds."""
PATIENCE = 1.0
"""Seconds without a byte after which we say what we wait for."""


def prompt_of(argument: str | None) -> str | None:
    """What is asked, or None for a chat: no prompt, and a terminal.

    Text that is piped in comes before the argument, with a space between them, as `llm` has it
    (https://llm.datasette.io/en/stable/usage.html); `-` means it alone.
    """
    if argument != "-" and sys.stdin.isatty():
        return argument
    if argument in (None, "-"):
        return without_final_newline(_piped())
    piped = _piped(beside=True)
    return f"{piped} {argument}" if piped and argument else argument or without_final_newline(piped)


def _piped(beside: bool = False) -> str:
    return decoded(_bytes(beside), "the prompt on stdin")


def _bytes(beside: bool) -> bytes:
    """All bytes of stdin. A pipe that somebody left open is waited for, but not without a word."""
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # a stream without a file, in a test
        return sys.stdin.buffer.read()
    pieces, length = [], 0
    with KEYBOARD.wakes():
        while piece := _read(descriptor, beside and not length):
            pieces.append(piece)
            length += len(piece)
            if length > MOST:
                raise InputError(f"the prompt on stdin has more than {MOST:,} bytes, which no context holds")
    return b"".join(pieces)


def _read(descriptor: int, beside: bool) -> bytes:
    if sys.platform != "win32" and not select.select([descriptor], [], [], PATIENCE)[0]:
        more = "which comes before the prompt (start with </dev/null if there is none)" if beside else "for the prompt"
        note(f"waiting for stdin, {more}")
        select.select([descriptor], [], [])
    return os.read(descriptor, 1 << 20)
