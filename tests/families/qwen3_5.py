"""Tests' data of qwen3_5: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import DELTA, FEW_EXPERTS, QWEN_MOE, USUAL, case

CASES = [
    case("qwen3_5_text", "plain", **DELTA),
    case(
        "qwen3_5_text",
        "options",
        {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        **DELTA
        | {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 40,
            "linear_conv_kernel_dim": 3,
        },
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case("qwen3_5_moe_text", "plain", **DELTA, **QWEN_MOE, shared_expert_intermediate_size=40),
]
SIZES = USUAL | FEW_EXPERTS
REFUSED = [
    ("layer_types", {"layer_types": ["linear_attention"] * 4 + ["sliding_attention"]}),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("attn_output_gate", {"attn_output_gate": False}),
    ("output_gate_type", {"output_gate_type": "sigmoid"}),
    ("linear_gate_dim", {"linear_gate_dim": 12}),
    ("rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
]
WRONG = [
    ("linear_num_value_heads", {"linear_num_value_heads": 3, "linear_num_key_heads": 2}),
    ("linear_value_head_dim", {"linear_value_head_dim": 0}),
    ("text_config", {"model_type": "qwen3_5", "text_config": 3}),
]
