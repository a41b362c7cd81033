"""What of a generated text is the answer, what is thinking before it, and what calls tools, told apart while it grows.

Two ways are known. Most models that think begin with a block, `<think>` … `</think>`, which some chat templates open
already. gpt-oss (harmony) writes messages to channels: `<|channel|>analysis<|message|>…<|end|>`; the one to `final` is
the answer, and one `to=functions.NAME` a call. The markers, and the line breaks beside them, are neither (`markup`).
Other models write calls into their answers: text/tool_splitter.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from lapinfer.text.tool_calls import ToolCall, call_of, identified

Kind = Literal["answer", "thinking", "call", "markup"]


class Part(NamedTuple):
    """A piece of the text; `calls` are what the text of a "call" says."""

    kind: Kind
    text: str
    calls: tuple[ToolCall, ...] = ()


BLOCKS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<thinking>": "</thinking>", "<seed:think>": "</seed:think>"}
"""Beginnings of thinking and their ends: Qwen, DeepSeek and SmolLM, Magistral, and others."""

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
HARMONY = (CHANNEL, MESSAGE, START, "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
"""The tokens that messages of gpt-oss are made of."""

FUNCTIONS = "functions."
"""What the names of tools begin with, where a message is sent to one."""


class Splitter(Protocol):
    """Tells the parts of a text that comes in pieces; all parts together are the text.

    `markers` are texts that it looks for, and that may be special tokens.
    """

    @property
    def markers(self) -> tuple[str, ...]: ...

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        ...

    def flush(self) -> list[Part]:
        """What was held back, at the end."""
        ...


class Blocks:
    """Thinking in a block before the answer. What begins later, in the middle of an answer, is part of it."""

    markers = (*BLOCKS, *BLOCKS.values())

    def __init__(self, prompt: str = "") -> None:
        end = next((end for begin, end in BLOCKS.items() if prompt.rstrip().endswith(begin)), None)
        self._end, self._text = end, ""
        self._state: Literal["before", "margin", "thinking", "answer"] = "before" if end is None else "margin"
        self._had_block = end is not None

    def push(self, text: str) -> list[Part]:
        self._text += text
        return joined(self._parts(at_end=False))

    def flush(self) -> list[Part]:
        return joined(self._parts(at_end=True))

    def _parts(self, at_end: bool) -> Iterator[Part]:
        while self._text:
            if self._state == "answer":
                yield Part("answer", self._take(len(self._text)))
            elif self._state == "margin":
                yield Part("markup", self._take(len(self._text) - len(self._text.lstrip("\r\n"))))
                if self._text:
                    self._state = "thinking"
            elif self._state == "thinking":
                end = self._end or ""
                at = self._text.find(end)
                if at < 0:
                    kept = 0 if at_end else held(self._text, [end])
                    yield Part("thinking", self._take(len(self._text) - kept))
                    return
                yield Part("thinking", self._take(at))
                yield Part("markup", self._take(len(end)))
                self._state = "before"
            else:
                space = len(self._text) - len(self._text.lstrip())
                rest = self._text[space:]
                begin = next((begin for begin in BLOCKS if rest.startswith(begin)), None)
                if begin is not None:
                    yield Part("markup", self._take(space + len(begin)))
                    self._end, self._state, self._had_block = BLOCKS[begin], "margin", True
                elif any(begin.startswith(rest) for begin in BLOCKS) and not at_end:
                    return
                else:  # after a block, line breaks belong to it; else every character is the answer's
                    if self._had_block:
                        yield Part("markup", self._take(len(self._text) - len(self._text.lstrip("\r\n"))))
                    self._state = "answer"

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


class Channels:
    """Messages to channels; only that to `final`, or to none, is the answer.

    with_calls: what is sent to a function is a call; else it is thinking, as are calls of the model's own tools.
    """

    markers = HARMONY

    def __init__(self, prompt: str = "", with_calls: bool = False) -> None:
        self._text = self._header = self._tool = self._arguments = ""
        self._kind: Kind = "answer"
        self._in_header = False
        self._with_calls, self._prompt, self._calls = with_calls, prompt, 0
        if START in prompt:
            self.push(prompt[prompt.rindex(START) :])
            self._text = self._arguments = ""

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while self._text:
            found = [(at, marker) for marker in HARMONY if (at := self._text.find(marker)) >= 0]
            at, marker = min(found, default=(len(self._text) - held(self._text, HARMONY), None))
            parts += self._said(self._take(at))
            if marker is None:
                break
            parts += self._called()
            parts.append(Part("markup", self._take(len(marker))))
            self._mark(marker)
        return joined(parts)

    def flush(self) -> list[Part]:
        return joined([*self._said(self._take(len(self._text))), *self._called()])

    def _said(self, text: str) -> list[Part]:
        if self._in_header:
            self._header += text
            return [Part("markup", text)]
        if self._kind == "call":
            self._arguments += text
            return []
        return [Part(self._kind, text)]

    def _called(self) -> list[Part]:
        """The call that ends here, if there is one; what is none is plain text."""
        text, self._arguments = self._arguments, ""
        if not text:
            return []
        call = call_of(self._tool, text)
        if call is None:
            return [Part("answer", text)]
        self._calls += 1
        return [Part("call", text, identified([call], self._prompt, self._calls))]

    def _mark(self, marker: str) -> None:
        if marker == MESSAGE:
            name = self._header.rpartition(CHANNEL)[2].split()
            _, sent, to = self._header.partition("to=")
            to_nobody = CHANNEL not in self._header and not sent
            self._kind = "answer" if to_nobody or (name[:1] == ["final"] and not sent) else "thinking"
            if self._with_calls and to.startswith(FUNCTIONS):
                self._kind, self._tool = "call", to.removeprefix(FUNCTIONS).replace("<", " ").partition(" ")[0]
            self._in_header = False
        elif marker in (START, CHANNEL, "<|constrain|>"):
            self._header = marker if marker == START or not self._in_header else self._header + marker
            self._in_header = True
        else:
            self._header, self._in_header = "", True

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


def held(text: str, markers: Iterable[str]) -> int:
    """How many characters at the end of a text may begin a marker."""
    return max((n for m in markers for n in range(1, min(len(m), len(text) + 1)) if text.endswith(m[:n])), default=0)


def joined(parts: Iterable[Part]) -> list[Part]:
    """Without empty parts; neighbours of a kind as one."""
    joined: list[Part] = []
    for part in parts:
        if part.text and joined and joined[-1].kind == part.kind:
            joined[-1] = Part(part.kind, joined[-1].text + part.text, joined[-1].calls + part.calls)
        elif part.text:
            joined.append(part)
    return joined


def of_kind(parts: Sequence[Part], kind: Kind) -> str:
    """The text of the parts of a kind."""
    return "".join(part.text for part in parts if part.kind == kind)


def calls_of(parts: Sequence[Part]) -> tuple[ToolCall, ...]:
    """All calls in some parts."""
    return tuple(call for part in parts for call in part.calls)
