"""What tokenizer_config.json and the files beside it say of a tokenizer, read as transformers' AutoTokenizer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer may have."""


def token_text(value: Any) -> str | None:
    """'<s>' or {'content': '<s>', …}, as both are found in these files."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of the special tokens, as chat templates get them: those of `NAMED`, and a model's own.

    A model's own ones are other keys that end in _token, and `extra_special_tokens` where that is an object.
    """
    own = {key: value for key, value in config.items() if key.endswith("_token") and key not in NAMED}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        own |= extra
    values = {key: config.get(key) for key in NAMED} | own
    return {key: text for key, value in values.items() if (text := token_text(value)) is not None}
