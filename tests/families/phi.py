"""Tests' data of phi: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

CASES = [
    case("phi", "plain", hidden_size=64),
    case(
        "phi",
        "options",
        YARN | {"partial_rotary_factor": 0.4},
        hidden_size=80,
        qk_layernorm=True,
        num_key_value_heads=None,
        tie_word_embeddings=True,
        hidden_act="relu",
        layer_norm_eps=1e-3,
    ),
]
