"""Where a chat's messages come from: the plain reader of lines, or an editor (editor.py) where one can be had."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from typing import Protocol

from lapinfer.cli.chat.commands import is_open
from lapinfer.interrupts import KEYBOARD


class Reader(Protocol):
    def read(self) -> str:
        """The next message or command. KeyboardInterrupt where it was given up, EOFError at the end."""
        ...


def reader() -> Reader:
    """The editor on a terminal that can show it, where prompt_toolkit is installed."""
    if is_screen() and importlib.util.find_spec("prompt_toolkit") is not None:
        from lapinfer.cli.chat.editor import Editor

        return Editor()
    return PlainReader()


def is_screen() -> bool:
    """Whether stdin and stdout are a terminal that can do more than print lines."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


class PlainReader:
    """Lines of stdin; one that opens a block goes on to where that ends."""

    def __init__(self) -> None:
        with suppress(ImportError):  # line editing, where the platform has it
            import readline  # noqa: F401

    def read(self) -> str:
        text = self._line("> ")
        while is_open(text):
            text += "\n" + self._line(". ")
        return text

    def _line(self, prompt: str) -> str:
        on_terminal = sys.stdout.isatty()
        if not on_terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            with KEYBOARD.wakes():
                return input(prompt if on_terminal else "")
        except EOFError:
            print(file=sys.stderr)
            raise
