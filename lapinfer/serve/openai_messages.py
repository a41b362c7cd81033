"""OpenAI's messages and tools, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lapinfer.arguments import described, json_list, json_object
from lapinfer.errors import InputError, UnsupportedError
from lapinfer.serve.forced_calls import call_schema
from lapinfer.text.tool_calls import parsed

TEXTS = ("text", "input_text", "output_text", "refusal", "thinking", "reasoning_text")
"""Types of parts that are text."""


def messages_of(given: Any) -> list[dict[str, Any]]:
    """Messages whose content is text, whose calls have their arguments as objects, and whose results name their tool.

    A developer's message is the system's, under the name that templates know. InputError names the message that is
    wrong; UnsupportedError for images and other parts that are no text.
    """
    names: dict[str, str] = {}
    return [_message(f"messages[{i}]", each, names) for i, each in enumerate(json_list("messages", given))]


def _message(where: str, given: Any, names: dict[str, str]) -> dict[str, Any]:
    message = dict(json_object(where, given))
    if message.get("role") == "developer":
        message["role"] = "system"
    if (content := message.get("content")) is not None:
        message["content"] = text_of(f"{where}.content", content)
    if (calls := message.get("tool_calls")) is not None:
        message["tool_calls"] = [call_of(f"{where}.tool_calls[{i}]", call, names)
                                 for i, call in enumerate(json_list(f"{where}.tool_calls", calls))]  # fmt: skip
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
    for i, part in enumerate(json_list(where, content)):
        kind = json_object(f"{where}[{i}]", part).get("type")
        text = part.get("text", part.get(kind) if isinstance(kind, str) else None)
        if kind not in TEXTS:
            raise UnsupportedError(f"{where}[{i}]: models here read text alone, not a part of type {described(kind)}")
        if not isinstance(text, str):
            raise InputError(f"{where}[{i}].text: expected text, got {described(text)}")
        texts.append(text)
    return "".join(texts)


def call_of(where: str, given: Any, names: dict[str, str]) -> dict[str, Any]:
    """A call that a message makes; `names` learns the tool's by the call's id."""
    call = dict(json_object(where, given))
    function = dict(json_object(f"{where}.function", call.get("function")))
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
    for i, item in enumerate(json_list("tools", given)):
        tool = dict(json_object(f"tools[{i}]", item))
        if tool.get("type", "function") != "function":
            raise UnsupportedError(f"tools[{i}].type: this server has no tools of type {described(tool['type'])}")
        function = dict(json_object(f"tools[{i}].function", tool.get("function")))
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise InputError(f"tools[{i}].function.name: expected text, got {described(function.get('name'))}")
        function["parameters"] = dict(
            json_object(f"tools[{i}].function.parameters", function.get("parameters") or {"type": "object"})
        )
        tools.append({"type": "function", "function": function})
    return tools


def forced_of(choice: Any, tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools of which one must be called, by `tool_choice`; none where the model decides."""
    match choice:
        case None | "auto" | "none":
            return []
        case "required":
            chosen = list(tools)
        case {"type": "function", "function": {"name": name}} | {"type": "function", "name": name}:
            chosen = [tool for tool in tools if tool["function"]["name"] == name]
        case other:
            raise InputError(f"tool_choice: expected auto, none, required or a function, got {described(other)}")
    if not chosen:
        raise InputError("tool_choice: a tool must be called that is not among tools")
    return chosen


def schema_of(where: str, format: Any, inner: str | None = None) -> Any:
    """The JSON schema that an answer keeps to by its format; None for text. inner: the object that has the schema."""
    given = json_object(where, format or {"type": "text"})
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return given.get("schema") or {"type": "object"}
        case "json_schema":
            where, holder = (where, given) if inner is None else (f"{where}.{inner}", given.get(inner))
            return dict(json_object(f"{where}.schema", json_object(where, holder).get("schema")))
        case other:
            raise InputError(f"{where}.type: expected text, json_object or json_schema, got {described(other)}")


def answer_options(
    *, tools: Sequence[dict[str, Any]], choice: Any, schema: Any, continues: bool, effort: str | None,
    variables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Options of `LanguageModel.chat_request`: tools, the schema of an answer or of a call that is forced, and what the
    template is told. effort: of reasoning; "none" asks for no thinking.
    """
    options: dict[str, Any] = {"tools": list(tools)} if tools and choice != "none" else {}
    if forced := forced_of(choice, tools):
        if schema is not None:
            raise InputError("tool_choice: a call is forced, so the answer's format cannot be kept to as well")
        schema = call_schema(forced)
    if schema is not None:
        options["schema"] = schema
    told = dict(variables or {})
    if effort == "none":
        told.setdefault("enable_thinking", False)
    elif effort is not None:
        told.setdefault("reasoning_effort", effort)
    if told:
        options["template_kwargs"] = told
    return options | ({"continue_final_message": True} if continues else {})


def is_begun(messages: Sequence[Any]) -> bool:
    """Whether the last message is an answer that can be gone on with."""
    last = messages[-1] if messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant" and not last.get("tool_calls")
