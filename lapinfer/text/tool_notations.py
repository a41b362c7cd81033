"""Calls in notations that are not JSON: Qwen3-Coder's tags, Python's calls, and the braces of Gemma."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lapinfer.text.tool_calls import Parameters, ToolCall, call_of, parsed

FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\s*(.*?)\s*</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)


def xml_call(text: str, parameters: Parameters) -> tuple[ToolCall, ...]:
    """<function=NAME><parameter=KEY>value</parameter>…</function>; values are what the tool's schema says they are."""
    found = FUNCTION.fullmatch(text)
    if found is None:
        return ()
    name, body = found.group(1).strip(), found.group(2)
    schemas, arguments, at = parameters.get(name, {}), {}, 0
    while at < len(body):
        match = PARAMETER.match(body, at)
        if match is None:
            return ()
        key, value = match.group(1).strip(), match.group(2)
        arguments[key] = _typed(value, schemas.get(key))
        at = match.end()
    call = call_of(name, arguments)
    return () if call is None else (call,)


def _typed(text: str, schema: Any) -> Any:
    """Text, unless the schema wants something else that it is the JSON of."""
    kinds = _kinds(schema)
    word = text.strip()
    if word in ("null", "None") and "null" in kinds:
        return None
    if not kinds or "string" in kinds:
        return text
    value = WORDS[word] if word in WORDS else parsed(word)
    return text if value is None else value


def _kinds(schema: Any) -> set[str]:
    """Types that a schema allows."""
    if not isinstance(schema, Mapping):
        return set()
    kinds = schema.get("type")
    found = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    found |= {"null"} if schema.get("nullable") else set()
    choices = [choice for key in ("anyOf", "oneOf") for choice in schema.get(key) or ()]
    return found.union(*map(_kinds, choices))


def python_calls(text: str, parameters: Parameters) -> tuple[ToolCall, ...]:
    """`name(key="value")`, several in a list or on lines of their own; also `name.call(…)` and `print(name(…))`.

    Nothing is run: arguments are literals. Those without a keyword get the names of the tool's parameters.
    """
    import ast
    import warnings

    try:
        with warnings.catch_warnings():  # Python's compiler warns of odd escapes
            warnings.simplefilter("ignore", SyntaxWarning)
            body = ast.parse(text.strip()).body
        nodes = [node.value for node in body if isinstance(node, ast.Expr)]
        if len(nodes) != len(body):
            return ()
        nodes = [item for node in nodes for item in (node.elts if isinstance(node, ast.List) else [node])]
        calls = [_python_call(node, parameters) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
    return tuple(call for call in calls if call is not None) if None not in calls else ()


def _python_call(node: Any, parameters: Parameters) -> ToolCall | None:
    import ast

    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func).removesuffix(".call")
    if name == "print" and name not in parameters and len(node.args) == 1:
        return _python_call(node.args[0], parameters)
    known = list(parameters.get(name, {}))
    if len(node.args) > len(known) or any(keyword.arg is None for keyword in node.keywords):
        return None
    arguments = {key: ast.literal_eval(value) for key, value in zip(known, node.args, strict=False)}
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return call_of(name, arguments)


WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
"""In JSON, and in Python, which models mix up."""


class Braces:
    """Gemma's `call:NAME{key:value,…}`, in which text stands between quotes that are tokens: `<escape>`, `<|"|>`."""

    SIMPLE = re.compile(r"[^,\[\]{}:]+")

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def __call__(self, text: str, parameters: Parameters) -> tuple[ToolCall, ...]:
        del parameters
        found = re.match(r"\s*call:\s*([\w.\-]+)\s*(?=\{)", text)
        if found is None:
            return ()
        try:
            arguments, end = self._value(text, found.end())
        except (ValueError, RecursionError):
            return ()
        call = None if text[end:].strip() else call_of(found.group(1), arguments)
        return () if call is None else (call,)

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a position, and where it ends; ValueError where there is none."""
        if text.startswith(self._quote, at):
            start = at + len(self._quote)
            end = text.index(self._quote, start)
            return text[start:end], end + len(self._quote)
        if text[at : at + 1] == "{":
            return self._items(text, at + 1, "}")
        if text[at : at + 1] == "[":
            return self._items(text, at + 1, "]")
        found = self.SIMPLE.match(text, at)
        if found is None:
            raise ValueError("expected a value")
        word = found.group().strip()
        if word in WORDS:
            return WORDS[word], found.end()
        number = parsed(word)
        return (word if number is None else number), found.end()

    def _items(self, text: str, at: int, close: str) -> tuple[Any, int]:
        named: dict[str, Any] = {}
        items: list[Any] = []
        at = _spaces(text, at)
        while text[at : at + 1] != close:
            if close == "}":
                key, at = self._value(text, at)
                at = _spaces(text, at)
                if text[at : at + 1] != ":":
                    raise ValueError("expected a key")
                named[key if isinstance(key, str) else json.dumps(key)], at = self._value(text, _spaces(text, at + 1))
            else:
                item, at = self._value(text, at)
                items.append(item)
            at = _spaces(text, at)
            if text[at : at + 1] == ",":
                at = _spaces(text, at + 1)
            elif text[at : at + 1] != close:
                raise ValueError("expected the next item")
        return (named if close == "}" else items), at + 1


def _spaces(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at
