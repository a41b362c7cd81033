"""An answer on stdout as it grows, with or without the thinking before it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lapinfer.cli.console import note, write_answer

if TYPE_CHECKING:
    from lapinfer.text.generation import Token


@dataclass(slots=True)
class Answer:
    """What was said so far: `text`, and `thinking` before it. streaming: whether it is written at once."""

    show_thinking: bool = False
    streaming: bool = True
    text: str = ""
    thinking: str = ""
    _shown: list[str] = field(default_factory=list)

    def add(self, token: Token) -> None:
        """Another token's part of the answer."""
        if token.thinking and not self.thinking and not self.show_thinking and sys.stderr.isatty():
            note("thinking …")
        if self.show_thinking:
            self._show(token.thinking)
            self._show("\n\n" if self.thinking + token.thinking and token.text and not self.text else "")
        self._show(token.text)
        self.thinking += token.thinking
        self.text += token.text

    def finish(self) -> None:
        """Write what was not written as it grew."""
        if not self.streaming:
            write_answer("".join(self._shown))

    def _show(self, text: str) -> None:
        if self.streaming:
            write_answer(text)
        else:
            self._shown.append(text)
