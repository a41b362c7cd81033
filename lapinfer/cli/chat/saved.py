"""Conversations in files: {"lapinfer": "chat", "messages": [{"role": …, "content": …}, …]}, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lapinfer.checkpoint.json_files import read_json
from lapinfer.cli.chat.talk import Said, Talk
from lapinfer.errors import InputError
from lapinfer.home import expanded
from lapinfer.outputs import begins_with, check_place, write_whole

MARK = '{\n "lapinfer": "chat",\n'
"""How files of ours begin: these may be replaced."""
FIELDS = ("role", "content", "reasoning_content")
ROLES = ("system", "user", "assistant")


def save(name: str, talk: Talk) -> Path:
    """Write all that was said; InputError where a file is that is no saved chat, or where none can be."""
    path = expanded(name)
    check_place(path, _is_ours, otherwise="no chat that was saved here", instead="name another file")
    messages = json.dumps(talk.whole(), ensure_ascii=False, indent=1)
    write_whole(path, f'{MARK} "messages": {messages}\n}}\n')
    return path


def load(name: str) -> Talk:
    """The conversation in a file; CheckpointError or InputError, in one line, where there is none."""
    path = expanded(name)
    messages = read_json(path).get("messages")
    if not isinstance(messages, list):
        raise InputError(f'{path}: no chat: expected "messages", a list')
    said = [_message(f"{path}: messages[{i}]", i, message) for i, message in enumerate(messages)]
    first = said[0] if said else {}
    return Talk(first["content"], said[1:]) if first.get("role") == "system" else Talk(None, said)


def _message(where: str, index: int, given: Any) -> Said:
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected an object with role and content, got {type(given).__name__}")
    role = given.get("role")
    if role not in ROLES or (role == "system" and index):
        allowed = "user or assistant" if index else "system, user or assistant"
        raise InputError(f"{where}: expected the role {allowed}, got {str(role)[:40]!r}")
    message = {name: given[name] for name in FIELDS if given.get(name) is not None}
    for name in ("content", *message):
        value = message.get(name)
        if not isinstance(value, str):
            raise InputError(f"{where}: expected text as {name}, got {type(value).__name__}")
        if not value.isascii():
            _check_unicode(where, name, value)
    return message


def _check_unicode(where: str, name: str, text: str) -> None:
    """JSON can hold half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {name} is not valid Unicode: {error.reason} at {error.start}") from None


def _is_ours(path: Path) -> bool:
    return begins_with(path, len(MARK)) == MARK.encode()
