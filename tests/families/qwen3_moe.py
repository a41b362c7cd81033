"""Tests' data of qwen3_moe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import FEW_EXPERTS, QWEN_MOE, USUAL, case

CASES = [
    case("qwen3_moe", "plain", **QWEN_MOE | {"num_experts": 7}, head_dim=16),
    case(
        "qwen3_moe",
        "options",
        **QWEN_MOE | {"num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 40},
        norm_topk_prob=True,
        mlp_only_layers=[0],
        num_hidden_layers=3,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | FEW_EXPERTS
WRONG = [
    ("num_experts", {"num_experts": None}),
    ("mlp_only_layers", {"mlp_only_layers": 1}),
    ("decoder_sparse_step", {"decoder_sparse_step": 0}),
]
