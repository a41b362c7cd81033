"""Messages from prompt_toolkit: editing, history in a private file, completion, several lines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from lapinfer.cli.chat.commands import COMMANDS, SETTINGS, is_open
from lapinfer.cli.console import note
from lapinfer.errors import InputError
from lapinfer.home import home
from lapinfer.interrupts import KEYBOARD
from lapinfer.outputs import NOT_FOLLOWED
from lapinfer.private import CHECKED, private_folder, read_private, write_private

HISTORY = "chat-history"
MOST = 1 << 20
"""Bytes of history; a longer one loses its older half."""


class Editor:
    """A line at a terminal; `more` goes to PromptSession, for tests."""

    def __init__(self, **more: Any) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history(),
            key_bindings=_keys(),
            completer=Completions(),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            multiline=Condition(lambda: is_open(self._session.default_buffer.text)),
            prompt_continuation=". ",
            enable_open_in_editor=False,
            **more,
        )

    def read(self) -> str:
        with KEYBOARD.wakes(), KEYBOARD.lent():
            return self._session.prompt("> ")


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    @keys.add("<sigint>")
    def clear(event: KeyPressEvent) -> None:
        """Clears the line; there is nothing that an empty one could lose."""
        event.current_buffer.reset()

    @keys.add("escape", "enter", eager=True)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class Completions(Completer):
    """Of commands, of the names of settings, and of files."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if not space:
            yield from _beginning(command, COMMANDS)
        elif command == "/set" and " " not in rest:
            yield from _beginning(rest, SETTINGS)
        elif command in ("/save", "/load"):
            yield from self._files.get_completions(Document(rest), complete_event)


def _beginning(text: str, names: Iterable[str]) -> Iterator[Completion]:
    yield from (Completion(name, start_position=-len(text)) for name in names if name.startswith(text))


def history() -> History:
    """What was typed, in a file of LAPINFER_HOME that this user alone can read; in memory where none can be made."""
    try:
        path = private_folder(home()) / HISTORY
        _make_private(path)
    except (OSError, InputError) as error:
        note(f"note: the history of this chat is not kept: {error}")
        return InMemoryHistory()
    return FileHistory(path)


def _make_private(path: Path) -> None:
    """Have the file there, short enough; PermissionError for one that is not this user's own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | NOT_FOLLOWED, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (CHECKED and status.st_uid != os.geteuid()):
            raise PermissionError(f"{path} is no file of this user's")
        if CHECKED:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    if status.st_size > MOST and (data := read_private(path, status.st_size)) is not None:
        kept = data[-MOST // 2 :]
        write_private(path, kept[max(kept.find(b"\n# "), 0) :])
