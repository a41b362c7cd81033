"""Python functions as the JSON schemas that chat templates show to models, by their annotations and docstrings.

The rules are those of transformers' `get_json_schema`: Google's form of docstrings, a description for every argument.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lapinfer.errors import InputError

SCALARS: dict[type, str] = {int: "integer", float: "number", str: "string", bool: "boolean", NoneType: "null"}
CONTAINERS: dict[type, str] = {list: "array", tuple: "array", dict: "object"}

ARGUMENTS = re.compile(r"\n\s*Args:\n(.*?)[\n\s]*(Returns:|Raises:|\Z)", re.DOTALL)
DESCRIPTION = re.compile(r"^(.*?)[\n\s]*(Args:|Returns:|Raises:|\Z)", re.DOTALL)
RETURNS = re.compile(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(Raises:|\Z)", re.DOTALL)
ARGUMENT = re.compile(r"(\s*)(\w+)(?:[ \t]*\([^()]*\))?:\s*(.*)")
CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schema(where: str, tool: Any) -> Mapping[str, Any]:
    """The schema of a tool, which may be one already; InputError says what a function lacks."""
    if isinstance(tool, Mapping):
        return tool
    if not (inspect.isfunction(tool) or inspect.ismethod(tool)):
        raise InputError(f"{where}: expected a JSON schema or a function, got {type(tool).__name__}")
    try:
        return _of_function(tool)
    except _NoSchemaError as error:
        raise InputError(f"{where}: no schema can be made of {tool.__name__}: {error}") from None
    except Exception as error:  # of annotations that cannot be evaluated
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{where}: no schema can be made of {tool.__name__}: {reason}") from error


class _NoSchemaError(Exception):
    """Why a function has no schema."""


def _of_function(function: Callable[..., Any]) -> dict[str, Any]:
    doc = (inspect.getdoc(function) or "").strip()
    if not doc:
        raise _NoSchemaError("it has no docstring")
    described = _arguments(doc)
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    first = next(iter(parameters), None)
    receiver = first if first in ("self", "cls") and parameters[first].annotation is inspect.Parameter.empty else None
    named = [name for name in parameters if name != receiver]
    for name in named:
        if parameters[name].annotation is inspect.Parameter.empty:
            raise _NoSchemaError(f"the argument {name!r} has no annotation")
        if name not in described:
            raise _NoSchemaError(f"its docstring does not describe the argument {name!r} under 'Args:'")
    properties = {name: _described(_of_hint(hint), described[name]) for name, hint in hints.items() if name in named}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [name for name in named if parameters[name].default is inspect.Parameter.empty]:
        schema["required"] = required
    match = DESCRIPTION.search(doc)
    made = {"name": function.__name__, "description": match.group(1).strip() if match else None, "parameters": schema}
    if (result := _of_result(hints)) is not None:
        if (returns := RETURNS.search(doc)) is not None:
            result["description"] = returns.group(1).strip()
        made["return"] = result
    return {"type": "function", "function": made}


def _of_result(hints: dict[str, Any]) -> dict[str, Any] | None:
    """What a function gives; nothing where that has no schema, since the model does not make it."""
    try:
        return _of_hint(hints["return"]) if "return" in hints else None
    except _NoSchemaError:
        return None


def _arguments(doc: str) -> dict[str, str]:
    """Descriptions under 'Args:', each in one line; lines that are indented more than the first name continue one."""
    match = ARGUMENTS.search(doc)
    described: dict[str, str] = {}
    name, indent = None, ""
    for line in match.group(1).split("\n") if match else []:
        found = ARGUMENT.match(line)
        if found and (name is None or not line.startswith((indent + " ", indent + "\t"))):
            indent, name, description = found.groups()
            described[name] = description.strip()
        elif name is not None and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described


def _described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    """With its description, and the choices that may stand at the end of that: (choices: ["a", "b"])."""
    if found := CHOICES.search(description):
        schema["enum"] = [c.strip() if isinstance(c, str) else c for c in json.loads(found.group(1))]
        description = description[: found.start()].strip()
    return schema | {"description": description}


def _of_hint(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return _of_plain(hint)
    if origin in (Union, UnionType):
        return _of_union(arguments)
    if origin is Literal:
        return _of_values(list(arguments))
    if origin is list:
        return {"type": "array", "items": _of_hint(arguments[0])}
    if origin is tuple:
        if len(arguments) == 1 or ... in arguments:
            raise _NoSchemaError(f"{hint} has no fixed number of elements above one; annotate it as a list")
        return {"type": "array", "prefixItems": [_of_hint(a) for a in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_hint(arguments[1])}
    raise _NoSchemaError(f"{hint} has no JSON schema; write the schema by hand")


def _of_plain(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _of_values([member.value for member in hint])
    kind = (SCALARS | CONTAINERS).get(hint)
    if kind is None:
        raise _NoSchemaError(f"{hint!r} has no JSON schema; write the schema by hand")
    return {"type": kind}


def _of_values(values: list[Any]) -> dict[str, Any]:
    if not values or any(type(value) not in SCALARS for value in values):
        raise _NoSchemaError(f"{values} are not texts, numbers, booleans or None")
    kinds = list(dict.fromkeys(SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _of_union(arguments: tuple[Any, ...]) -> dict[str, Any]:
    kinds = [_of_hint(a) for a in arguments if a is not NoneType]
    schema: dict[str, Any]
    if len(kinds) == 1:
        schema = kinds[0]
    elif all(kind.keys() == {"type"} and isinstance(kind["type"], str) for kind in kinds):
        names = sorted({kind["type"] for kind in kinds})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": kinds}
    return schema | {"nullable": True} if NoneType in arguments else schema
