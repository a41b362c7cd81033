"""Tests' data of exaone4: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LLAMA3, case

CASES = [
    case("exaone4", "plain", sliding_window=6, num_hidden_layers=4),
    case(
        "exaone4",
        "no_windows",
        LLAMA3 | {"original_max_position_embeddings": 16},
        sliding_window=None,
        head_dim=20,
        tie_word_embeddings=True,
        layer_types=["full_attention"] * 2,
    ),
    case(
        "exaone4",
        "layer_types",
        sliding_window=5,
        sliding_window_pattern="LLG",
        num_hidden_layers=3,
        num_key_value_heads=1,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
]
REFUSED = [
    ("layer_types", {"layer_types": ["chunked_attention"] * 5}),
]
WRONG = [
    ("sliding_window_pattern", {"sliding_window_pattern": "LXG"}),
    ("sliding_window", {"sliding_window": None, "layer_types": ["sliding_attention"] * 5}),
]
