"""Tests' data of seed_oss: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("seed_oss", "plain", head_dim=16),
    case(
        "seed_oss",
        "options",
        {"rope_type": "linear", "factor": 2.5},
        head_dim=None,
        attention_bias=False,
        attention_out_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        num_key_value_heads=None,
    ),
]
