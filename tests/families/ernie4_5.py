"""Tests' data of ernie4_5: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

CASES = [
    case("ernie4_5", "plain", head_dim=16),
    case("ernie4_5", "options", YARN, head_dim=None, use_bias=True, tie_word_embeddings=False, num_key_value_heads=1),
]
