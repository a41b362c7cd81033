"""Numbers of tokens, in OpenAI's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lapinfer.serve.figures import figures
from lapinfer.text.generation import Token


class Usage:
    """Counts the tokens of an answer, or of several answers to one prompt."""

    def __init__(self, prompts: Sequence[int], *, tells_work: bool = True) -> None:
        """prompts: how many tokens each of them has. tells_work: as in `Marks`."""
        self._tells_work = tells_work
        self._prompt, self._reused, self._made, self._thought = sum(prompts), 0, 0, 0
        self._last: dict[int, Token] = {}
        self._unthought: dict[int, int] = {}

    def push(self, index: int, token: Token, *, made: bool = True) -> None:
        """made: whether it is told; else what was reused of its prompt alone counts."""
        self._made += made
        if index not in self._last and self._tells_work:
            self._reused += token.timings.reused_tokens
        self._last[index] = token
        # Those of markers have no text: they count as thinking where more of it follows.
        self._unthought[index] = self._unthought.get(index, 0) + 1
        if token.thinking:
            self._thought += self._unthought[index]
            self._unthought[index] = 0

    def numbers(self) -> dict[str, Any]:
        """What an answer, or the last of its chunks, tells; `lapinfer`: of the only one, what it touched."""
        return {"usage": self.counts()} | self.figures()

    def figures(self) -> dict[str, Any]:
        """The field `lapinfer`."""
        if not self._tells_work:
            return {}
        only = next(iter(self._last.values())) if len(self._last) == 1 else None
        return {"lapinfer": {} if only is None or only.finish_reason is None else figures(only)}

    def counts(self) -> dict[str, Any]:
        """As chats and completions have them."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._made,
            "total_tokens": self._prompt + self._made,
            "prompt_tokens_details": {"cached_tokens": min(self._reused, self._prompt)},
            "completion_tokens_details": {"reasoning_tokens": self._thought},
        }
