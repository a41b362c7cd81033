"""Tests' data of olmo2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("olmo2", "plain"),
    case("olmo2", "options", attention_bias=True, tie_word_embeddings=True, num_key_value_heads=4, hidden_size=40),
]
