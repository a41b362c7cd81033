"""What single tokens are, for those who want their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lapinfer.errors import UnsupportedError
from lapinfer.text.tokenizer import Tokenizer


class TokenTexts:
    """Bytes and texts of a model's tokens; special ones are shown by their names. None: a model without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _bytes(self) -> Sequence[bytes]:
        try:
            return [] if self._tokenizer is None else self._tokenizer.token_bytes
        except UnsupportedError:  # its tokens have none of their own
            return []

    @cached_property
    def _names(self) -> dict[int, str]:
        return {} if self._tokenizer is None else {id: name for name, id in self._tokenizer.vocabulary.items()}

    def bytes(self, id: int) -> bytes:
        """UTF-8, or a part of it where a character has several tokens."""
        if id < len(self._bytes) and self._bytes[id]:
            return self._bytes[id]
        if self._tokenizer is None:
            return b""
        text = self._tokenizer.decode([id]) if self._tokenizer.is_text(id) else self._names.get(id, "")
        return text.encode()

    def text(self, id: int) -> str:
        """Its text; of a part of a character, U+FFFD."""
        return self.bytes(id).decode("utf-8", "replace")

    def entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        """As chats have it."""
        data = self.bytes(id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": [*data]}
