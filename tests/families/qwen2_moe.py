"""Tests' data of qwen2_moe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import FEW_EXPERTS, QWEN_MOE, USUAL, case

CASES = [
    case("qwen2_moe", "plain", **QWEN_MOE, shared_expert_intermediate_size=48),
    case(
        "qwen2_moe",
        "dense_layer",
        **QWEN_MOE | {"num_experts_per_tok": 3},
        shared_expert_intermediate_size=40,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        num_hidden_layers=3,
        qkv_bias=False,
        tie_word_embeddings=True,
    ),
    case(
        "qwen2_moe",
        "sparse_step",
        **QWEN_MOE | {"num_experts_per_tok": 1},
        shared_expert_intermediate_size=16,
        decoder_sparse_step=2,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
]
SIZES = USUAL | FEW_EXPERTS
WRONG = [
    ("moe_intermediate_size", {"moe_intermediate_size": 0}),
    ("shared_expert_intermediate_size", {"shared_expert_intermediate_size": 0}),
    ("mlp_only_layers", {"mlp_only_layers": [1, "2"]}),
]
