"""Tests' data of starcoder2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("starcoder2", "plain"),
    case(
        "starcoder2",
        "options",
        {"rope_type": "linear", "factor": 2.0},
        use_bias=False,
        sliding_window=7,
        tie_word_embeddings=False,
        hidden_act="gelu",
        num_key_value_heads=1,
        hidden_size=40,
        norm_epsilon=1e-3,
    ),
]
REFUSED = [
    ("mlp_type", {"mlp_type": "gated"}),
    ("norm_type", {"norm_type": "rms_norm"}),
]
