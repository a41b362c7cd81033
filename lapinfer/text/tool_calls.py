"""ToolCall: what a model wants to be called, read from the objects that it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ID_LENGTH = 9
"""Characters of an id that we make: templates of Mistral refuse every other length."""
NAMES, ARGUMENTS = ("name", "function"), ("arguments", "parameters")
"""Keys of an object that is a call: most models write the first ones; Llama 3 writes `parameters`."""
Parameters = Mapping[str, Mapping[str, Any]]
"""Of each tool that the model was given: schemas of its parameters by name."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for.

    name: of the tool. arguments: JSON text of an object, as OpenAI's API has it. id: what the message of the result
    names it by (`tool_call_id`): the model's own where it writes one, else made of the prompt and the call's place.
    """

    id: str
    name: str
    arguments: str


def call_of(name: Any, arguments: Any, id: Any = None) -> ToolCall | None:
    """A call without an id, if the model gave none; None where this is none.

    Arguments that are text, are JSON text, as some models write them.
    """
    if isinstance(arguments, str):
        arguments = parsed(arguments)
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a pair of surrogates
            text = json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return ToolCall(id if isinstance(id, str) else "", name.strip(), text)


def call_of_object(value: Any) -> ToolCall | None:
    """{"name": …, "arguments": …} in the words of several models; also within {"type": "function", "function": …}."""
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        return call_of_object({"id": value.get("id")} | inner if "function" not in inner else None)
    name = next((value[key] for key in NAMES if key in value), None)
    return call_of(name, next((value[key] for key in ARGUMENTS if key in value), {}), value.get("id"))


def parsed(text: str) -> Any:
    """The value of JSON text; None where it is none. Line breaks in strings, which models write, are allowed."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def identified(calls: Sequence[ToolCall], prompt: str, first: int) -> tuple[ToolCall, ...]:
    """Calls with ids; those without get one by the prompt and their place, so that turns of a talk have their own."""
    return tuple(
        call if call.id else replace(call, id=hashlib.sha256(f"{place}\n{prompt}".encode()).hexdigest()[:ID_LENGTH])
        for place, call in enumerate(calls, first)
    )


def parameters_of(schemas: Sequence[Any]) -> Parameters:
    """Of each tool, the schemas of its parameters by name, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    for schema in schemas:
        function = schema.get("function", schema) if isinstance(schema, Mapping) else None
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            found[name] = properties if isinstance(properties, Mapping) else {}
    return found
