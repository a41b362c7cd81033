"""Calls of tools, told from the answer that they stand in while it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lapinfer.text.channels import Blocks, Channels, Part, Splitter, held, joined
from lapinfer.text.tool_calls import identified, parameters_of
from lapinfer.text.tool_formats import CallFormat

SPACE = " \t\r\n"


def splitter(
    prompt: str, harmony: bool, format: CallFormat | None = None, tools: Sequence[Any] | None = None
) -> Splitter:
    """For what is generated after a prompt. Without tools (as JSON schemas), there are no calls; nor without a format,
    but in harmony, which has its own.
    """
    if harmony:
        return Channels(prompt, with_calls=bool(tools))
    blocks = Blocks(prompt)
    return Calls(blocks, format, tools, prompt) if format is not None and tools else blocks


class Calls:
    """Calls in the answer that another splitter tells from thinking.

    White space before a call, and after the last one, is markup. What begins like a call and is none is part of the
    answer.
    """

    def __init__(self, outer: Splitter, format: CallFormat, tools: Sequence[Any], prompt: str = "") -> None:
        self._outer, self._format, self._prompt = outer, format, prompt
        self._parameters = parameters_of(tools)
        self._text, self._count = "", 0
        self._lead: int | None = None  # white space before what may be a call, where the text begins with these
        self._looked = 0  # characters of that which were looked at
        self._first = True  # nothing but calls in the answer so far, or since the last one
        self.markers = (*outer.markers, *format.markers)

    def push(self, text: str) -> list[Part]:
        return self._split(self._outer.push(text), at_end=False)

    def flush(self) -> list[Part]:
        return self._split([*self._outer.flush(), Part("answer", "")], at_end=True)

    def _split(self, parts: Sequence[Part], at_end: bool) -> list[Part]:
        found: list[Part] = []
        for number, part in enumerate(parts, 1):
            if part.kind == "answer":
                self._text += part.text
                found += self._parts(at_end and number == len(parts))
            else:
                found.append(part)
        return joined(found)

    def _parts(self, at_end: bool) -> Iterator[Part]:
        while self._text:
            if self._lead is None:
                at = self._begin()
                if at is None:
                    yield from self._plain(at_end)
                    return
                lead = at - len(self._text[:at].rstrip(self._space))
                yield from self._answer(at - lead)
                self._lead, self._looked = lead, 0
            rest = self._text[self._lead :]
            found = self._format.find(rest, self._looked, self._parameters, at_end)
            if found is None:
                self._looked = len(rest)
                return
            length, calls = found
            if calls:
                yield Part("markup", self._take(self._lead))
                yield Part("call", self._take(length), identified(calls, self._prompt, self._count + 1))
                self._count += len(calls)
                self._first = True
            else:
                yield from self._answer(self._lead + length)
            self._lead = None

    @property
    def _space(self) -> str:
        return SPACE + (self._format.separators if self._first and self._count else "")

    def _begin(self) -> int | None:
        """Where a call may begin."""
        found = [at for begin in self._format.begins if (at := self._text.find(begin)) >= 0]
        rest = self._text.lstrip(self._space)
        if self._first and rest.startswith(self._format.first):
            found.append(len(self._text) - len(rest))
        return min(found, default=None)

    def _plain(self, at_end: bool) -> Iterator[Part]:
        """What is no call, but for what may come before one, or be its beginning."""
        if at_end and self._first and self._count and not self._text.strip(self._space):
            yield Part("markup", self._take(len(self._text)))
        kept = 0 if at_end else held(self._text, self._format.begins)
        certain = self._text[: len(self._text) - kept]
        yield from self._answer(len(certain if at_end else certain.rstrip(self._space)))

    def _answer(self, length: int) -> Iterator[Part]:
        if length:
            self._first = False
            yield Part("answer", self._take(length))

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken
