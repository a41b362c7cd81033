"""Chat templates: messages to the text a model was trained on, by Jinja in a sandbox with bounded work.

A template comes with a checkpoint, so it is untrusted. Jinja's immutable sandbox keeps it from Python's
internals; `_BoundedEnvironment` keeps it from running forever or filling the memory: everything that can
repeat or grow (loop rounds, calls, filters, concatenations, literals, arithmetic, output) is charged for
before or right after it happens, against one budget and one deadline per rendering.
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lapinfer.errors import CheckpointError, InputError
from lapinfer.text.tokenizer import optional_json

Message = Mapping[str, Any]
"""{'role': 'system' | 'user' | 'assistant', 'content': text}, and whatever else the template knows."""

BASE_WORK, WORK_PER_CHARACTER, SECONDS = 3_000_000, 100, 5.0
"""The budget of one rendering: units (a loop round, or a character handled) for the template itself and
for each character of the messages, and a deadline. Real templates need a thousandth of it."""

LONGEST_SOURCE = 500_000


class _RefusalError(Exception):
    """The template called raise_exception: it does not accept these messages."""


class _OpaqueNamespace(Namespace):
    __repr__ = object.__repr__  # nested namespaces would print exponentially much


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the assistant says; it changes nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _size(value: Any) -> int:
    """Characters and elements in a value, those of containers included."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return 1 + sum(_size(k) + _size(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 1 + sum(map(_size, value))
    return 1 + value.bit_length() if isinstance(value, int) else 1


def _largest_result(values: Iterable[Any]) -> int:
    """An upper bound of what a call can make of its arguments: the product of sizes and of integers."""
    return math.prod(max(1, abs(v) if isinstance(v, int) else _size(v)) for v in values)


class _Charged(NodeTransformer):
    """Route what repeats or grows through the environment's `counted` and `charged` filters."""

    def _charged(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return nodes.Filter(node, "charged", [], [], None, None, lineno=node.lineno)

    visit_Call = visit_Concat = visit_List = visit_Dict = _charged  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        return self._charged(node) if node.ctx == "load" else node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Expr:  # noqa: N802
        if node.node is None:  # the filter of a block, whose text is charged as output
            self.generic_visit(node)
            return node
        return self._charged(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        self.generic_visit(node.call)
        for name in ("args", "defaults", "body"):
            setattr(node, name, [self.visit(child) for child in getattr(node, name)])
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:  # noqa: N802
        return nodes.Const(node.data, lineno=node.lineno)  # so that output passes through `finalize`


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants must not be computed, unbounded, while compiling
            extensions=[LoopControlExtension, _Generation],
            finalize=self._output,
        )
        self.left, self.deadline = 0, 0.0
        for name in ("format", "random", "pprint"):
            del self.filters[name]
        self.filters = {name: self._guarded(filter) for name, filter in self.filters.items()}
        self.filters |= {"charged": self._charged, "counted": self._counted, "tojson": self._guarded(_tojson)}
        self.globals["namespace"] = _OpaqueNamespace
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    def start(self, work: int) -> None:
        self.left, self.deadline = work, time.monotonic() + SECONDS

    def charge(self, work: int) -> None:
        self.left -= work
        if self.left < 0 or time.monotonic() > self.deadline:
            raise SecurityError("it does too much work")

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps what Jinja notes on functions that want the context
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.charge(_largest_result(v for v in (*args, *kwargs.values()) if isinstance(v, _VALUES)))
            return function(*args, **kwargs)

        return guarded

    # The three below ask for the context only so that Jinja does not apply them while compiling.
    @staticmethod
    @pass_context
    def _charged(context: jinja2.runtime.Context, value: Any) -> Any:
        context.environment.charge(_size(value))  # pyright: ignore[reportAttributeAccessIssue]
        return value

    @staticmethod
    @pass_context
    def _output(context: jinja2.runtime.Context, value: Any) -> Any:
        return _BoundedEnvironment._charged(context, value)

    @staticmethod
    @pass_context
    def _counted(context: jinja2.runtime.Context, values: Iterable[Any]) -> Iterable[Any]:
        if isinstance(values, jinja2.Undefined):
            return values  # raises, or is empty, as Jinja has it
        return _rounds(context.environment, values)  # pyright: ignore[reportArgumentType]

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # str.format comes wrapped
        if isinstance(owner, str) and "format" in getattr(obj, "__name__", "") and re.search(r"\d{5,}", owner):
            raise SecurityError("a format is too wide")
        values = (owner, *args, *kwargs.values())
        self.charge(_largest_result(v for v in values if isinstance(v, _VALUES)))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and re.search(r"\d{5,}|\*", left):
            raise SecurityError("a format is too wide")
        if operator == "+":
            self.charge(_size(left) + _size(right))
        elif isinstance(left, int) and isinstance(right, int):
            self.charge(left.bit_length() * (right if operator == "**" else right.bit_length()) + 1)
        else:
            self.charge(_largest_result((left, right)))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Charged().visit(super()._parse(source, name, filename))


_VALUES = (str, bytes, int, list, tuple, dict, set)


def _rounds(environment: _BoundedEnvironment, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        environment.charge(1)
        yield value


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False) -> str:
    """JSON as transformers writes it: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise _RefusalError(" ".join(str(message).split())[:300])


def _strftime_now(format: str) -> str:
    if re.search(r"\d{3,}", format):  # %999999999d makes a gigabyte
        raise SecurityError("a date format is too wide")
    return datetime.now().strftime(format)


class ChatTemplate:
    """A checkpoint's chat template. `where` names its file in error messages; rendering is safe from threads."""

    def __init__(self, source: str, where: str = "chat template", bos_token: str = "", eos_token: str = "") -> None:
        self._where, self._lock = where, threading.Lock()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        if len(source) > LONGEST_SOURCE:
            raise CheckpointError(f"{where}: {len(source):,} characters are no chat template")
        self._environment = _BoundedEnvironment()
        self._environment.start(BASE_WORK)
        self._template = self._bounded(lambda: self._environment.from_string(source))

    @classmethod
    def from_folder(cls, folder: str | Path, bos_token: str = "", eos_token: str = "") -> ChatTemplate | None:
        """From chat_template.jinja or tokenizer_config.json (one, or the one called 'default'); None if absent."""
        path = Path(folder) / "chat_template.jinja"
        if path.is_file():
            try:
                source: Any = path.read_text(encoding="utf-8")
            except ValueError as error:
                raise CheckpointError(f"{path}: not UTF-8 text ({error})") from error
        else:
            path = Path(folder) / "tokenizer_config.json"
            source = optional_json(path).get("chat_template")
        if isinstance(source, list):
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise CheckpointError(f"{path}: expected the chat template as text, got {type(source).__name__}")
        return cls(source, str(path), bos_token, eos_token)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation, ending where the assistant's answer begins.

        CheckpointError: the template is wrong or does too much work. InputError: it refuses these messages.
        """
        work = BASE_WORK + WORK_PER_CHARACTER * (_size(list(messages)) + _size(variables))
        values = self._tokens | variables | {"messages": messages, "add_generation_prompt": add_generation_prompt}
        with self._lock:
            self._environment.start(work)
            return self._bounded(lambda: self._template.render(values))

    def _bounded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except _RefusalError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{self._where}:{error.lineno}: {error.message}") from error
        except Exception as error:  # a template can raise anything: TypeError, RecursionError, MemoryError, …
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CheckpointError(f"{self._where}: the chat template failed: {reason}") from error
