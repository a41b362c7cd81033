"""How models write calls of tools: where one ends, and what it says. Which of the ways a model has, its template tells.

Sources: the chat templates of the models named below, and transformers' response templates (cli/serving/utils.py).
gpt-oss writes calls to channels: text/channels.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lapinfer.text.tool_calls import Parameters, ToolCall, call_of, call_of_object, parsed
from lapinfer.text.tool_notations import Braces, python_calls, xml_call

Found = tuple[int, tuple[ToolCall, ...]]
"""How many characters a call has, or several together; without calls, these characters are plain text."""
Reader = Callable[[str, Parameters], Sequence[ToolCall]]
"""What a text says as calls; none where it is malformed."""


class CallFormat(Protocol):
    """A way to write calls.

    begins: what a call begins with, anywhere in an answer; first: what it begins with where the answer does, or after
    a call. markers: texts that a tokenizer may have as special tokens. separators: what stands between calls besides
    white space.
    """

    @property
    def begins(self) -> tuple[str, ...]: ...
    @property
    def first(self) -> tuple[str, ...]: ...
    @property
    def markers(self) -> tuple[str, ...]: ...
    @property
    def separators(self) -> str: ...

    def find(self, text: str, since: int, parameters: Parameters, at_end: bool) -> Found | None:
        """What a text is that begins like a call; None while that depends on what comes, never at the end.

        `since` characters were looked at before. What is found does not change when text is added.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fenced:
    """Calls between two marks. The second may stand in a string, too: that counts before which calls are whole.

    words: what the inside begins with, so that a mark that is only talked about does not hold the answer up.
    """

    begin: str
    end: str
    words: tuple[str, ...]
    read: Reader
    quotes: tuple[str, ...] = ()
    separators: str = ""
    first: tuple[str, ...] = ()

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.begin,)

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.begin, self.end, *self.quotes)

    def find(self, text: str, since: int, parameters: Parameters, at_end: bool) -> Found | None:
        start = len(self.begin)
        inside = text[start:].lstrip()
        if not any(inside.startswith(word) or (word.startswith(inside) and not at_end) for word in self.words):
            return start, ()
        at = text.find(self.end, max(start, since - len(self.end)))
        while at >= 0:
            if calls := self.read(text[start:at], parameters):
                return at + len(self.end), tuple(calls)
            at = text.find(self.end, at + 1)
        if not at_end:
            return None
        calls = self.read(text[start:], parameters)  # the end of the answer ends a call, too
        return (len(text), tuple(calls)) if calls else (start, ())


def _tagged(text: str, parameters: Parameters) -> Sequence[ToolCall]:
    """Hermes and Qwen: an object; Qwen3-Coder: tags."""
    if text.lstrip().startswith("<"):
        return xml_call(text, parameters)
    call = call_of_object(parsed(text))
    return () if call is None else (call,)


class Mistral:
    """`[TOOL_CALLS] [{"name": …, "arguments": …}, …]`, and, since 2025, `[TOOL_CALLS]NAME[ARGS]{…}` for each call.

    Some of these write `[CALL_ID]id` after the name, others leave `[ARGS]` out.
    """

    begins: tuple[str, ...] = ("[TOOL_CALLS]",)
    first: tuple[str, ...] = ()
    markers = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    separators = ""
    HEAD = re.compile(r"\s*+([\w.\-]++)\s*+(?:\[CALL_ID\]\s*+(\w++)\s*+)?(?:\[ARGS\]\s*+)?(?=\{)")
    LIST = re.compile(r"\s*+(?=\{|\[\s*+\{)")
    OPEN = re.compile(r"\s*+\[?\s*+[\w.\-]*+\s*+(?:\[[A-Z_]*+\]?\s*+\w*+\s*+){0,2}\Z")
    """Whatever begins like a head or a list."""

    def find(self, text: str, since: int, parameters: Parameters, at_end: bool) -> Found | None:
        start = len(self.begins[0])
        plain = start, ()
        head = self.HEAD.match(text, start)
        begin = head or self.LIST.match(text, start)
        if begin is None:
            return None if self.OPEN.match(text, start) and not at_end else plain
        end = _json_end(text, begin.end(), since)
        if end is None:
            return plain if at_end else None
        value = parsed(text[begin.end() : end])
        if head is not None:
            calls = [call_of(head.group(1), value, head.group(2))]
        else:
            calls = [call_of_object(item) for item in (value if isinstance(value, list) else [value])]
        made = tuple(call for call in calls if call is not None)
        return (end, made) if len(made) == len(calls) else plain


class Llama:
    """Llama 3: `{"name": …, "parameters": …}` alone, as the whole answer; several are separated by `;`.

    After `<|python_tag|>` also anything else that is JSON of a call, and `NAME.call(key="value")` of built-in tools.
    An object without that tag is only a call of a tool that the model was given.
    """

    TAG = "<|python_tag|>"
    begins: tuple[str, ...] = (TAG,)
    first: tuple[str, ...] = ("{",)
    markers = (TAG,)
    separators = ";,"
    KEYS = tuple(f'"{key}"' for key in ("name", "type", "function", "parameters", "arguments", "id"))

    def find(self, text: str, since: int, parameters: Parameters, at_end: bool) -> Found | None:
        tagged = text.startswith(self.TAG)
        start = len(self.TAG) if tagged else 0
        rest = text[start:].lstrip()
        plain = start or 1, ()
        if not rest.startswith("{"):
            calls = tuple(python_calls(rest, parameters)) if at_end and tagged else ()
            return ((len(text), calls) if calls else plain) if at_end or not tagged else None
        key = rest[1:].lstrip()
        if not any(key.startswith(known) or known.startswith(key) for known in self.KEYS):
            return plain
        begin = len(text) - len(rest)
        end = _json_end(text, begin, since)
        if end is None:
            return plain if at_end else None
        call = call_of_object(parsed(text[begin:end]))
        if call is None or not (tagged or call.name in parameters):
            return plain
        return end, (call,)


def _json_end(text: str, start: int, since: int) -> int | None:
    """Where the object or list that begins at a position ends; None while it is open."""
    if not any(close in text[max(start, since) :] for close in "}]"):
        return None
    depth = 0
    for found in BRACKETS.finditer(text, start):
        mark = found.group()
        if mark == '"':
            return None
        if len(mark) == 1:
            depth += 1 if mark in "{[" else -1
            if depth == 0:
                return found.end()
    return None


BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
"""Whole strings, brackets, and a quotation mark that begins a string without an end."""

HERMES = Fenced("<tool_call>", "</tool_call>", ("{", "<function="), _tagged)
GEMMA_4 = Fenced("<|tool_call>", "<tool_call|>", ("call:",), Braces('<|"|>'), ('<|"|>',))
FUNCTION_GEMMA = Fenced("<start_function_call>", "<end_function_call>", ("call:",), Braces("<escape>"), ("<escape>",))
LFM_2 = Fenced("<|tool_call_start|>", "<|tool_call_end|>", ("[",), python_calls)
EVIDENCE: tuple[tuple[str, CallFormat | None], ...] = (
    (r"<arg_key>", None),  # GLM: Hermes' marks, and something else between them
    (r"<\|tool_call>", GEMMA_4),
    (r"<start_function_call>", FUNCTION_GEMMA),
    (r"<\|tool_call_start\|>|<\|tool_list_start\|>", LFM_2),
    (r"\[TOOL_CALLS\]", Mistral()),
    (r"<tool_call>", HERMES),
    (r'<\|python_tag\|>|\{"name": [^\n]{0,200}"parameters": ', Llama()),
    (r"tool_code", Fenced("```tool_code", "```", ("",), python_calls)),
)
"""What stands in a chat template, and the format it is evidence of; the first counts."""


def call_format(template: str) -> CallFormat | None:
    """The format of calls by the source of a chat template; None where it has no tools, or a format not known here."""
    return next((format for evidence, format in EVIDENCE if re.search(evidence, template)), None)
