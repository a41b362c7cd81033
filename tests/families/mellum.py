"""Tests' data of mellum: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import FEW_EXPERTS, QWEN_MOE, USUAL, YARN, case

ROPE = {
    "full_attention": YARN | {"rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
CASES = [
    case(
        "mellum",
        "plain",
        **QWEN_MOE,
        head_dim=16,
        rope_parameters=ROPE,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    case(
        "mellum",
        "options",
        **QWEN_MOE,
        head_dim=20,
        rope_parameters=ROPE,
        sliding_window=5,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        attention_bias=True,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        num_key_value_heads=1,
    ),
]
SIZES = USUAL | FEW_EXPERTS
REFUSED = [
    ("rope_parameters", {"rope_parameters": {"rope_theta": 1e4}}),
    ("mlp_layer_types", {"mlp_layer_types": ["gated"] * 5}),
]
