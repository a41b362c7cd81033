"""Tests' data of ministral3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

GROWING = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
CASES = [
    case("ministral3", "plain", GROWING | {"original_max_position_embeddings": 8}, head_dim=16),
    case(
        "ministral3",
        "options",
        GROWING | {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 3},
        head_dim=20,
        sliding_window=7,
        tie_word_embeddings=True,
        num_key_value_heads=1,
    ),
]
REFUSED = [
    ("attention_bias", {"attention_bias": True}),
    ("model_type", {"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}),
]
