"""Tests' data of smollm3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("smollm3", "plain", num_hidden_layers=4),
    case(
        "smollm3",
        "options",
        no_rope_layers=[0, 1],
        use_sliding_window=True,
        sliding_window=6,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
]
WRONG = [
    ("no_rope_layers", {"no_rope_layers": [2] * 5}),
]
