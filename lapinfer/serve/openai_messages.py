"""OpenAI's messages and tools, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lapinfer.arguments import described
from lapinfer.errors import InputError, UnsupportedError
from lapinfer.text.tool_calls import parsed

TEXTS = ("text", "input_text", "output_text", "refusal", "thinking")
"""Types of parts that are text."""


def messages_of(given: Any) -> list[dict[str, Any]]:
    """Messages whose content is text, whose calls have their arguments as objects, and whose results name their tool.

    A developer's message is the system's, under the name that templates know. InputError names the message that is
    wrong; UnsupportedError for images and other parts that are no text.
    """
    names: dict[str, str] = {}
    return [_message(f"messages[{i}]", each, names) for i, each in enumerate(_list("messages", given))]


def _message(where: str, given: Any, names: dict[str, str]) -> dict[str, Any]:
    message = dict(_object(where, given))
    if message.get("role") == "developer":
        message["role"] = "system"
    if (content := message.get("content")) is not None:
        message["content"] = text_of(f"{where}.content", content)
    if (calls := message.get("tool_calls")) is not None:
        message["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call, names)
                                 for i, call in enumerate(_list(f"{where}.tool_calls", calls))]  # fmt: skip
        if not calls:
            del message["tool_calls"]
    if message.get("role") == "tool" and not message.get("name"):
        name = names.get(str(message.get("tool_call_id")))
        message |= {} if name is None else {"name": name}
    return message


def text_of(where: str, content: Any) -> str:
    """The text of a content, which may stand in parts."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(_list(where, content)):
        kind = _object(f"{where}[{i}]", part).get("type")
        text = part.get("text", part.get(kind) if isinstance(kind, str) else None)
        if kind not in TEXTS:
            raise UnsupportedError(f"{where}[{i}]: models here read text alone, not a part of type {described(kind)}")
        if not isinstance(text, str):
            raise InputError(f"{where}[{i}].text: expected text, got {described(text)}")
        texts.append(text)
    return "".join(texts)


def _call(where: str, given: Any, names: dict[str, str]) -> dict[str, Any]:
    call = dict(_object(where, given))
    function = dict(_object(f"{where}.function", call.get("function")))
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise InputError(f"{where}.function.name: expected text, got {described(name)}")
    if isinstance(arguments, str):
        arguments = parsed(arguments) if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise InputError(f"{where}.function.arguments: expected the JSON of an object, got {described(arguments)}")
    names[str(call.get("id"))] = name
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def tools_of(given: Any) -> list[dict[str, Any]]:
    """Tools, each with a name and parameters."""
    tools: list[dict[str, Any]] = []
    for i, item in enumerate(_list("tools", given)):
        tool = dict(_object(f"tools[{i}]", item))
        if tool.get("type", "function") != "function":
            raise UnsupportedError(f"tools[{i}].type: this server has no tools of type {described(tool['type'])}")
        function = dict(_object(f"tools[{i}].function", tool.get("function")))
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise InputError(f"tools[{i}].function.name: expected text, got {described(function.get('name'))}")
        function["parameters"] = dict(
            _object(f"tools[{i}].function.parameters", function.get("parameters") or {"type": "object"})
        )
        tools.append({"type": "function", "function": function})
    return tools


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise InputError(f"{where}: expected an object, got {described(value)}")


def _list(where: str, value: Any) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    raise InputError(f"{where}: expected a list, got {described(value)}")
