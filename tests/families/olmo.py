"""Tests' data of olmo: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("olmo", "plain"),
    case(
        "olmo",
        "options",
        {"rope_type": "linear", "factor": 2.0},
        clip_qkv=0.8,
        attention_bias=True,
        tie_word_embeddings=True,
        num_key_value_heads=None,
        hidden_size=40,
        hidden_act="gelu",
    ),
]
WRONG = [
    ("clip_qkv", {"clip_qkv": -1.0}),
]
