"""A conversation as a chat keeps it: what was said, and how much of that the context still has room for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapinfer.text.language_model import LanguageModel

Said = dict[str, str]
"""A message: role and content; of an answer also reasoning_content, where the model thought before it."""
ROOM = 256
"""Tokens of an answer that there should be room for, unless -n says how many; at most a quarter of a context."""


@dataclass(slots=True)
class Talk:
    """system: the system message; messages: all others, of which the first `left_out` are no longer told the model."""

    system: str | None = None
    messages: list[Said] = field(default_factory=list)
    left_out: int = 0

    def whole(self) -> list[Said]:
        """The system message, and all that was said."""
        return self._with_system(self.messages)

    def told(self) -> list[Said]:
        """What the model is told."""
        return self._with_system(self.messages[self.left_out :])

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages, self.left_out = [], 0

    def shorten(self, model: LanguageModel, options: dict[str, Any]) -> int:
        """Leave the oldest exchanges out where the context has no room for an answer; how many messages these are.

        Then half of the context is left free, where that can be, so that not each question has the rest read anew.
        Nothing is left out where even the last message alone does not fit.
        """
        context, before = model.model.ctx, self.left_out
        wanted = min(options["max_tokens"] or ROOM, context // 4)
        if self._tokens(model, options, before) <= context - wanted:
            return 0
        starts = [i for i, message in enumerate(self.messages) if message["role"] == "user" and i > before]
        for start in starts:
            tokens = self._tokens(model, options, start)
            if tokens <= context // 2 or (start == starts[-1] and tokens <= context):
                self.left_out = start
                break
        return self.left_out - before

    def _tokens(self, model: LanguageModel, options: dict[str, Any], start: int) -> int:
        assert model.template is not None
        assert model.tokenizer is not None
        messages = self._with_system(self.messages[start:])
        prompt = model.template.render(messages, **(options.get("template_kwargs") or {}))
        return len(model.tokenizer.encode(prompt, special=False))

    def _with_system(self, messages: list[Said]) -> list[Said]:
        return ([] if self.system is None else [{"role": "system", "content": self.system}]) + messages
