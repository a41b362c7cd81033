"""Tests' data of afmoe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, case

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
CASES = [
    case("afmoe", "plain", **EXPERTS, head_dim=16, num_hidden_layers=4, global_attn_every_n_layers=2, sliding_window=6),
    case(
        "afmoe",
        "options",
        {"rope_type": "linear", "factor": 2.0},
        **EXPERTS,
        head_dim=20,
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        sliding_window=5,
        attention_bias=True,
        mup_enabled=True,
        route_scale=2.5,
        num_dense_layers=2,
        num_shared_experts=1,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
REFUSED = [
    ("score_func", {"score_func": "softmax"}),
    ("route_norm", {"route_norm": False}),
    ("n_group", {"n_group": 4}),
    ("layer_types", {"layer_types": ["chunked_attention"] * 5}),
]
WRONG = [
    ("num_shared_experts", {"num_shared_experts": -1}),
    ("sliding_window", {"sliding_window": None}),
]
