"""Which calls clients are told: where one must be made, the answer is a JSON object that keeps to a schema of tools,
and nothing else.

Where the model decides, it must have been told of the tools (`check_told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lapinfer.errors import UnsupportedError
from lapinfer.text.generation import Token
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.tool_calls import call_of_object, identified, parsed

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


class Calls:
    """Tokens of an answer, with the calls that its client is told of.

    forced: the answer is one call, or text where it was cut before that was whole; neither is told before the end.
    single: of several calls, the first alone. about: what the id of a forced call is made of.
    """

    def __init__(self, about: str, *, forced: bool, single: bool) -> None:
        self._about, self._forced, self._single = about, forced, single
        self._held, self._made = "", 0

    def push(self, token: Token) -> Token:
        text, calls = token.text, token.tool_calls
        if self._forced:
            self._held += text
            text = ""
            if token.finish_reason is not None:
                call = call_of_object(parsed(self._held))
                text, calls = (self._held, ()) if call is None else ("", tuple(identified([call], self._about, 1)))
        if self._single:
            calls = calls[: 1 - min(self._made, 1)]
        self._made += len(calls)
        return token if (text, calls) == (token.text, token.tool_calls) else replace(token, text=text, tool_calls=calls)
