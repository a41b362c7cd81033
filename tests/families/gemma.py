"""Tests' data of gemma: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("gemma", "plain", head_dim=16),
    case("gemma", "options", head_dim=20, hidden_act="gelu", attention_bias=True, num_key_value_heads=1),
    case("gemma", "untied", head_dim=12, hidden_act="silu", tie_word_embeddings=False, num_key_value_heads=4),
]
REFUSED = [
    ("use_bidirectional_attention", {"use_bidirectional_attention": True}),
    ("hidden_activation", {"hidden_activation": "gelu"}),
]
