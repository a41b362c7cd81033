"""Tests' data of glm4: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

CASES = [
    case("glm4", "plain", head_dim=16),
    case(
        "glm4",
        "options",
        YARN | {"partial_rotary_factor": 0.75},
        head_dim=16,
        attention_bias=False,
        tie_word_embeddings=True,
        num_key_value_heads=1,
        hidden_act="gelu",
    ),
]
