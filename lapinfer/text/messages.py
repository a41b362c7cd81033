"""What a chat template is given: messages, tools and documents, checked, as the plain data that transformers passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapinfer.errors import InputError
from lapinfer.text.tool_schema import tool_schema

Message = Mapping[str, Any]
"""{'role': 'system' | 'user' | 'assistant' | …, 'content': text}, and whatever else the template knows."""
Messages = str | Sequence[Message]
"""A conversation; text alone is a message of the user."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of an answer's reasoning: templates read the first, gpt-oss's the second."""
SPEAKERS = ("system", "developer", "user", "assistant")
"""Roles whose content is text, or a list of parts; that of tools may be anything."""
TELLING = SPEAKERS[:-1]
"""Those whose message is nothing without a content; an assistant's may be calls alone."""


def conversation(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates get them; InputError names the one that is wrong, and its field.

    Fields that are None are left out: APIs return them for what is absent, and templates would print 'None'. Reasoning
    gets the names that templates know.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    messages = getattr(messages, "messages", messages)
    if not isinstance(messages, list | tuple):
        kind = "one message: put it into a list" if isinstance(messages, Mapping) else type(messages).__name__
        raise InputError(f"messages: expected text or a list of messages, got {kind}")
    if not messages:
        raise InputError("messages: expected at least one, got an empty list")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, given: Any) -> dict[str, Any]:
    message = plain(where, given)
    if not isinstance(message, dict):
        several = "; several chats at once: chat_batch" if isinstance(message, str) else ""
        raise InputError(f"{where}: expected {{'role': …, 'content': …}}, got {type(message).__name__}{several}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        got = "nothing" if role is None else repr(role)
        raise InputError(f"{where}: expected a role ('user', 'assistant', 'system', …), got {got}")
    if set(message) == {"role"} or (role in TELLING and "content" not in message):
        others = ", ".join(repr(name) for name in message if name != "role")[:100]
        raise InputError(f"{where}: the {role}'s message has no content{others and f', only {others}'}")
    if role in SPEAKERS:
        content = given.get("content") if isinstance(given, Mapping) else getattr(given, "content", None)
        _check_content(f"{where}['content']", content)
    message = {name: value for name, value in message.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _check_content(where: str, content: Any) -> None:
    """What is said is text, or parts of it: of anything else, templates would print what Python calls it."""
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise InputError(f"{where}: expected text or a list of parts, got {type(content).__name__}")
    for i, part in enumerate(content):
        if part is None or isinstance(part, bytes | int | float | list | tuple):
            kind = type(part).__name__
            raise InputError(f"{where}[{i}]: expected a part ({{'type': 'text', 'text': …}}), got {kind}")


def tool_schemas(tools: Any) -> list[Any] | None:
    """JSON schemas of tools, which may be given as schemas or as Python functions."""
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise InputError(f"tools: expected a list of JSON schemas or functions, got {type(tools).__name__}")
    return [plain(f"tools[{i}]", tool_schema(f"tools[{i}]", tool)) for i, tool in enumerate(tools)]


def document_list(documents: Any) -> list[Any] | None:
    """Documents ({'title': …, 'text': …}) that an answer may draw on."""
    if documents is None:
        return None
    if not isinstance(documents, list | tuple):
        raise InputError(f"documents: expected a list of {{'title': …, 'text': …}}, got {type(documents).__name__}")
    for i, document in enumerate(documents):
        if not isinstance(document, dict):
            raise InputError(f"documents[{i}]: expected {{'title': …, 'text': …}}, got {type(document).__name__}")
    return plain("documents", documents)


def plain(where: str, value: Any) -> Any:
    """A value made of JSON's types alone, as templates may see it; what is none of them becomes '<its type>'.

    Objects with fields (dataclasses, pydantic's models) become dictionaries. InputError for one that contains itself.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply, or contains itself") from None


def _plain(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)  # of a subclass, its text alone
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Mapping():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case tuple():
            return tuple(_plain(item) for item in value)
        case np.generic():
            return _plain(value.item())
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _ if callable(dump := getattr(value, "model_dump", None)):
            return _plain(dump())
        case _:
            return f"<{type(value).__name__}>"
