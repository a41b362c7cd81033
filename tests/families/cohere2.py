"""Tests' data of cohere2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("cohere2", "plain", sliding_window=6, num_hidden_layers=4),
    case(
        "cohere2",
        "options",
        {"rope_type": "linear", "factor": 2.0},
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"],
        attention_bias=True,
        logit_scale=0.25,
        tie_word_embeddings=False,
        num_key_value_heads=None,
        hidden_size=40,
        layer_norm_eps=1e-3,
    ),
]
REFUSED = [
    ("use_qk_norm", {"use_qk_norm": True}),
    ("rotary_pct", {"rotary_pct": 0.5}),
    ("use_parallel_block", {"use_parallel_block": False}),
]
WRONG = [
    ("sliding_window", {"sliding_window": None}),
]
