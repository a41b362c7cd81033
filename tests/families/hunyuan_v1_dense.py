"""Tests' data of hunyuan_v1_dense: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("hunyuan_v1_dense", "plain", head_dim=16),
    case(
        "hunyuan_v1_dense",
        "alpha",
        {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0},
        head_dim=20,
        attention_bias=True,
        tie_word_embeddings=True,
        num_key_value_heads=None,
    ),
]
REFUSED = [
    ("use_cla", {"use_cla": True}),
    ("use_qk_norm", {"use_qk_norm": False}),
    ("rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
]
