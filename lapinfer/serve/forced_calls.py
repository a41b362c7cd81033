"""Calls that must be made: the answer is a JSON object that keeps to a schema of tools, and nothing else.

Where the model decides, it must have been told of the tools (`check_told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lapinfer.errors import UnsupportedError
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.tool_calls import ToolCall, call_of_object, identified, parsed

DEFINITIONS = ("$defs", "definitions")
"""Where a schema has those that it refers to."""
NAMED = ("properties", "patternProperties", "dependentSchemas")
"""Where a schema has others by names of the client's, which are no keywords."""
VALUES = ("const", "enum", "default", "examples")
"""Where a schema has values."""


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of an answer that is one call of one of these tools: {"name": …, "arguments": {…}}."""
    definitions: dict[str, Any] = {}
    calls = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        call = {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": _moved(function["parameters"], f"tool{i}.", definitions),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        calls.append(call)
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | ({"$defs": definitions} if definitions else {})


def check_told(model: LanguageModel, options: Mapping[str, Any]) -> None:
    """UnsupportedError where a model is to decide on tools that its chat template does not tell it of."""
    tools = options.get("tools")
    if tools and "schema" not in options and model.template is not None and "tools" not in model.template.source(tools):
        raise UnsupportedError(
            "tools: this model's chat template does not tell it of tools, so it would call none; a call can be forced "
            "with tool_choice"
        )


def _moved(schema: Any, prefix: str, definitions: dict[str, Any]) -> Any:
    """A schema that becomes a part of another one: its definitions go to that one's, under names of their own."""
    if isinstance(schema, list):
        return [_moved(each, prefix, definitions) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key in DEFINITIONS and isinstance(value, Mapping):
            for name, each in value.items():
                definitions[prefix + name] = _moved(each, prefix, definitions)
        elif key == "$ref" and isinstance(value, str) and value.startswith(tuple(f"#/{name}/" for name in DEFINITIONS)):
            moved[key] = f"#/$defs/{prefix}{value.split('/', 2)[2]}"
        elif key in NAMED and isinstance(value, Mapping):
            moved[key] = {name: _moved(each, prefix, definitions) for name, each in value.items()}
        elif key in VALUES:
            moved[key] = value
        else:
            moved[key] = _moved(value, prefix, definitions)
    return moved


def forced_call(text: str, about: str) -> ToolCall | None:
    """The call that an answer is; None where it was cut before it was whole. about: what its id is made of."""
    call = call_of_object(parsed(text))
    return None if call is None else identified([call], about, 1)[0]
