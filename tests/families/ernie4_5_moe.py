"""Tests' data of ernie4_5_moe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, case

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES = [
    case("ernie4_5_moe", "plain", **EXPERTS, num_hidden_layers=3),
    case(
        "ernie4_5_moe",
        "options",
        **EXPERTS,
        num_hidden_layers=5,
        moe_layer_start_index=1,
        moe_layer_end_index=3,
        moe_layer_interval=2,
        moe_num_shared_experts=0,
        moe_norm_min=0.7,
        use_bias=True,
        head_dim=20,
        tie_word_embeddings=False,
        num_key_value_heads=1,
    ),
]
SIZES = USUAL | EXPERTS
REFUSED = [
    ("use_bias", {"use_bias": True}),
    ("moe_gate", {"moe_gate": "softmax"}),
]
