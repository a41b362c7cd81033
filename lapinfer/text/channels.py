"""What of a generated text is the answer, and what is thinking before it, told apart while it grows.

Two ways are known. Most models that think begin with a block, `<think>` … `</think>`, which some chat templates open
already. gpt-oss (harmony) writes messages to channels: `<|channel|>analysis<|message|>…<|end|>`; the one to `final` is
the answer. The markers, and the line breaks beside them, are neither (`markup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

Kind = Literal["answer", "thinking", "markup"]
Part = tuple[Kind, str]

BLOCKS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<thinking>": "</thinking>", "<seed:think>": "</seed:think>"}
"""Beginnings of thinking and their ends: Qwen, DeepSeek and SmolLM, Magistral, and others."""

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
HARMONY = (CHANNEL, MESSAGE, START, "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
"""The tokens that messages of gpt-oss are made of."""

MARKERS = (*BLOCKS, *BLOCKS.values(), *HARMONY)


class Splitter(Protocol):
    """Tells the parts of a text that comes in pieces; all parts together are the text."""

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        ...

    def flush(self) -> list[Part]:
        """What was held back, at the end."""
        ...


def splitter(prompt: str, harmony: bool) -> Splitter:
    """For what is generated after a prompt."""
    return Channels(prompt) if harmony else Blocks(prompt)


class Blocks:
    """Thinking in a block before the answer. What begins later, in the middle of an answer, is part of it."""

    def __init__(self, prompt: str = "") -> None:
        end = next((end for begin, end in BLOCKS.items() if prompt.rstrip().endswith(begin)), None)
        self._end, self._text = end, ""
        self._state: Literal["before", "margin", "thinking", "answer"] = "before" if end is None else "margin"
        self._had_block = end is not None

    def push(self, text: str) -> list[Part]:
        self._text += text
        return _joined(self._parts(at_end=False))

    def flush(self) -> list[Part]:
        return _joined(self._parts(at_end=True))

    def _parts(self, at_end: bool) -> Iterator[Part]:
        while self._text:
            if self._state == "answer":
                yield "answer", self._take(len(self._text))
            elif self._state == "margin":
                yield "markup", self._take(len(self._text) - len(self._text.lstrip("\r\n")))
                if self._text:
                    self._state = "thinking"
            elif self._state == "thinking":
                end = self._end or ""
                at = self._text.find(end)
                if at < 0:
                    held = 0 if at_end else _held(self._text, [end])
                    yield "thinking", self._take(len(self._text) - held)
                    return
                yield "thinking", self._take(at)
                yield "markup", self._take(len(end))
                self._state = "before"
            else:
                space = len(self._text) - len(self._text.lstrip())
                rest = self._text[space:]
                begin = next((begin for begin in BLOCKS if rest.startswith(begin)), None)
                if begin is not None:
                    yield "markup", self._take(space + len(begin))
                    self._end, self._state, self._had_block = BLOCKS[begin], "margin", True
                elif any(begin.startswith(rest) for begin in BLOCKS) and not at_end:
                    return
                else:  # after a block, line breaks belong to it; else every character is the answer's
                    if self._had_block:
                        yield "markup", self._take(len(self._text) - len(self._text.lstrip("\r\n")))
                    self._state = "answer"

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


class Channels:
    """Messages to channels; only that to `final`, or to none, is the answer."""

    def __init__(self, prompt: str = "") -> None:
        self._text = self._header = ""
        self._kind: Kind = "answer"
        self._in_header = self._pending = False
        if START in prompt:
            self.push(prompt[prompt.rindex(START) :])
            self._text = ""
        self._pending = False

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while self._text:
            found = [(at, marker) for marker in HARMONY if (at := self._text.find(marker)) >= 0]
            at, marker = min(found, default=(len(self._text) - _held(self._text, HARMONY), None))
            parts += self._said(self._take(at))
            if marker is None:
                break
            parts.append(("markup", self._take(len(marker))))
            self._mark(marker)
        return _joined(parts)

    def flush(self) -> list[Part]:
        return _joined(self._said(self._take(len(self._text))))

    def _said(self, text: str) -> list[Part]:
        if self._in_header:
            self._header += text
            return [("markup", text)]
        return [(self._kind, text)]

    def _mark(self, marker: str) -> None:
        if marker == MESSAGE:
            name = self._header.rpartition(CHANNEL)[2].split()
            tool = "to=" in self._header
            to_nobody = CHANNEL not in self._header and not tool
            self._kind = "answer" if to_nobody or (name[:1] == ["final"] and not tool) else "thinking"
            self._in_header = False
        elif marker in (START, CHANNEL, "<|constrain|>"):
            self._header = marker if marker == START or not self._in_header else self._header + marker
            self._in_header = True
        else:
            self._header, self._in_header = "", True

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


def _held(text: str, markers: Iterable[str]) -> int:
    """How many characters at the end of a text may begin a marker."""
    return max((n for m in markers for n in range(1, min(len(m), len(text) + 1)) if text.endswith(m[:n])), default=0)


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Without empty parts; neighbours of a kind as one."""
    joined: list[Part] = []
    for kind, text in parts:
        if text and joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        elif text:
            joined.append((kind, text))
    return joined


def of_kind(parts: Sequence[Part], kind: Kind) -> str:
    """The text of the parts of a kind."""
    return "".join(text for found, text in parts if found == kind)
