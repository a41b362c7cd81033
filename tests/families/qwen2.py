"""Tests' data of qwen2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("qwen2", "plain"),
    case("qwen2", "window", use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    case(
        "qwen2",
        "layer_types",
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
]
REFUSED = [
    ("layer_types", {"layer_types": ["chunked_attention"] * 5}),
]
WRONG = [
    ("layer_types", {"layer_types": ["full_attention"]}),
    ("sliding_window", {"layer_types": ["sliding_attention"] * 5}),
]
