"""Tests' data of lfm2_moe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import FEW_EXPERTS, HYBRID, MIXED, QWEN_MOE, USUAL, case

CASES = [
    case("lfm2_moe", "plain", **HYBRID, **QWEN_MOE, num_dense_layers=1),
    case(
        "lfm2_moe",
        "options",
        **HYBRID,
        **QWEN_MOE | {"num_experts": 5, "num_experts_per_tok": 3},
        hidden_size=40,
        num_dense_layers=0,
        conv_bias=True,
        conv_L_cache=5,
        use_expert_bias=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        tie_word_embeddings=False,
    ),
    case(
        "lfm2_moe",
        "every_expert",
        **HYBRID | {"layer_types": ["conv", "conv", "full_attention"]},
        **QWEN_MOE | {"num_experts": 4, "num_experts_per_tok": 4},
        conv_L_cache=2,
        use_expert_bias=False,
        routed_scaling_factor=0.5,
    ),
]
SIZES = USUAL | FEW_EXPERTS | {"layer_types": MIXED}
REFUSED = [
    ("layer_types", {"layer_types": [["conv"]] * 5}),
]
WRONG = [
    ("layer_types", {"layer_types": None}),
    ("conv_bias", {"conv_bias": 1}),
    ("num_dense_layers", {"num_dense_layers": -1}),
]
