"""Tests' data of glm4_moe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, case

EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
CASES = [
    case("glm4_moe", "plain", **EXPERTS, head_dim=16),
    case(
        "glm4_moe",
        "options",
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25},
        **EXPERTS,
        head_dim=24,
        attention_bias=True,
        use_qk_norm=True,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        first_k_dense_replace=2,
        num_hidden_layers=3,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | {"n_routed_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
REFUSED = [
    ("scoring_func", {"scoring_func": "softmax"}),
]
WRONG = [
    ("n_group", {"n_group": 3}),
]
