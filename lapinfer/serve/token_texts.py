"""What single tokens are, for those who want their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lapinfer.errors import UnsupportedError
from lapinfer.text.generation import Token
from lapinfer.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0


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

    def plain(self, id: int) -> bytes:
        """UTF-8 that a text has of it, or a part of that where a character has several tokens."""
        if id < len(self._bytes):
            return self._bytes[id]
        return b"" if self._tokenizer is None else self._tokenizer.decode([id]).encode()

    def bytes(self, id: int) -> bytes:
        """`plain`, or the name of a token that is no text."""
        return self.plain(id) or self._names.get(id, "").encode()

    def name(self, id: int) -> str:
        """A text that is no other token's, as completions have it: bytes are spelled where they are no text."""
        data = self.bytes(id)
        try:
            return data.decode() if data else f"token:{id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        """As chats have it."""
        data = self.bytes(id)
        return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": [*data]}

    def judged(self, token: Token) -> list[dict[str, Any]]:
        """A token as chats tell it with its log-probability; that which ends an answer is none of it."""
        if token.finish_reason == "stop":
            return []
        top = [self.entry(id, logprob) for id, logprob in token.top]
        return [self.entry(token.token, token.logprob) | {"top_logprobs": top}]


def finite(logprob: float | None) -> float | None:
    """A log-probability as JSON can have it: OpenAI's number for tokens that are impossible."""
    return None if logprob is None else max(logprob, IMPOSSIBLE)
