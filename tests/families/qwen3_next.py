"""Tests' data of qwen3_next: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import DELTA, FEW_EXPERTS, QWEN_MOE, USUAL, case

CASES = [
    case("qwen3_next", "plain", **DELTA, **QWEN_MOE, shared_expert_intermediate_size=40),
    case(
        "qwen3_next",
        "options",
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
        **DELTA
        | {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "head_dim": 12,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 17,
            "linear_value_head_dim": 40,
            "linear_conv_kernel_dim": 2,
        },
        **QWEN_MOE | {"num_experts_per_tok": 1},
        shared_expert_intermediate_size=24,
        norm_topk_prob=False,
        attention_bias=True,
        mlp_only_layers=[1],
        decoder_sparse_step=2,
        tie_word_embeddings=True,
    ),
    case(
        "qwen3_next",
        "dense",
        **DELTA | {"linear_conv_kernel_dim": 1, "linear_num_value_heads": 6, "linear_value_head_dim": 8},
        **QWEN_MOE | {"num_experts": 0},
        num_key_value_heads=1,
    ),
]
SIZES = USUAL | FEW_EXPERTS
REFUSED = [
    ("layer_types", {"layer_types": ["linear_attention"] * 4 + ["sliding_attention"]}),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("linear_attention_gate", {"linear_attention_gate": "tanh"}),
]
WRONG = [
    ("linear_num_value_heads", {"linear_num_value_heads": 3, "linear_num_key_heads": 2}),
    ("linear_conv_kernel_dim", {"linear_conv_kernel_dim": 0}),
    ("full_attention_interval", {"full_attention_interval": 0}),
    ("linear_key_head_dim", {"linear_key_head_dim": 1 << 20}),
]
