"""Tests' data of gpt_oss: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, YARN, experts

CASES = [
    experts("gpt_oss", "yarn", YARN | {"truncate": False}, head_dim=16, sliding_window=5),
    experts(
        "gpt_oss",
        "layer_types",
        {"rope_type": "linear", "factor": 2.0},
        head_dim=12,
        num_local_experts=4,
        num_experts_per_tok=4,
        hidden_size=96,  # much wider than the experts: some of their values are beyond what they are clamped to
        intermediate_size=12,
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        sliding_window=6,
        attention_bias=False,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
REFUSED = [
    ("quantization_config", {"quantization_config": {"quant_method": "exl2"}}),
    ("quantization_config", {"quantization_config": ["mxfp4"]}),
    ("quantization_config", {"quantization_config": {"quant_method": None}}),
    ("swiglu_limit", {"swiglu_limit": 5.0}),
    ("swiglu_alpha", {"swiglu_alpha": 1.5}),
]
WRONG = [
    ("sliding_window", {"sliding_window": None}),
    ("head_dim", {"head_dim": 7.5}),
]
