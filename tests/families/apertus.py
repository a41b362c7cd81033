"""Tests' data of apertus: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LLAMA3, case

CASES = [
    case("apertus", "plain", LLAMA3 | {"original_max_position_embeddings": 16}),
    case(
        "apertus",
        "options",
        {"rope_type": "linear", "factor": 2.0},
        hidden_act="relu2",
        attention_bias=True,
        head_dim=20,
        tie_word_embeddings=True,
        num_key_value_heads=None,
    ),
    case("apertus", "default_rope", rope_parameters=None, num_hidden_layers=3, num_key_value_heads=1),
]
REFUSED = [
    ("post_norm", {"post_norm": True}),
    ("qk_norm", {"qk_norm": False}),
]
