"""Tests' data of olmo3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

ROPE = {
    "full_attention": YARN | {"rope_theta": 5000.0, "attention_factor": 1.2},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
CASES = [
    case("olmo3", "plain", rope_parameters=ROPE, sliding_window=6, num_hidden_layers=4, head_dim=16),
    case(
        "olmo3",
        "options",
        rope_parameters=ROPE,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=5,
        attention_bias=True,
        tie_word_embeddings=True,
        num_key_value_heads=4,
        hidden_size=40,
    ),
]
REFUSED = [
    ("layer_types", {"layer_types": ["chunked_attention"] * 5}),
    ("rope_parameters", {"rope_parameters": {"rope_theta": 1e4}}),
]
WRONG = [
    ("sliding_window", {"sliding_window": None}),
]
