"""Tests' data of granite_swa: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import MULTIPLIERS, YARN, case

CASES = [
    case("granite_swa", "plain", sliding_window=6, num_hidden_layers=5),
    case(
        "granite_swa",
        "options",
        YARN,
        **MULTIPLIERS | {"tie_word_embeddings": False, "mlp_bias": True},
        sliding_window=5,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        layer_rope_theta=[500.0, 0, 2000.0],
        head_dim=16,
    ),
]
REFUSED = [
    ("layer_types", {"layer_types": ["chunked_attention"] * 5}),
]
WRONG = [
    ("layer_rope_theta", {"layer_rope_theta": [1e4]}),
    ("rope_theta", {"layer_rope_theta": ["x"] * 5}),
]
