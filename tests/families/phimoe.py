"""Tests' data of phimoe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LONG, USUAL, experts

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "short_mscale": 1.2,
    "long_mscale": 1.4,
    "original_max_position_embeddings": 16,
}
CASES = [
    experts("phimoe", "plain", router_jitter_noise=0.2),
    experts(
        "phimoe",
        "biases",
        router_jitter_noise=0.05,
        attention_bias=True,
        lm_head_bias=True,
        sliding_window=9,
        head_dim=20,
    ),
    experts(
        "phimoe",
        "longrope_short",
        LONG | {"original_max_position_embeddings": 32, "short_mscale": 1.2, "long_mscale": 1.4},
        head_dim=8,
        num_local_experts=2,
        tie_word_embeddings=True,
        lm_head_bias=True,
    ),
    experts(
        "phimoe",
        "longrope_long",  # transformers 5.24 never takes the long factors of this family: here they are the short ones
        LONG
        | {"long_factor": LONG["short_factor"], "original_max_position_embeddings": 16}
        | {"short_mscale": 1.2, "long_mscale": 1.4},
        head_dim=8,
        router_jitter_noise=0.0,
    ),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
REFUSED = [
    ("num_experts_per_tok", {"num_experts_per_tok": 1}),
    ("rope_type", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
]
WRONG = [
    ("short_mscale", {"rope_scaling": LONGROPE | {"short_mscale": None}}),
]
