"""Tests' data of dots1: tiny models, and options that are refused."""

from __future__ import annotations

from families.glm4_moe import EXPERTS
from families.glm4_moe import SIZES as SIZES
from family_cases import case

CASES = [
    case("dots1", "plain", **EXPERTS, n_shared_experts=2, sliding_window=None, first_k_dense_replace=1),
    case(
        "dots1",
        "options",
        **EXPERTS,
        n_shared_experts=1,
        head_dim=20,
        attention_bias=True,
        n_group=2,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        sliding_window=6,
        max_window_layers=1,
        tie_word_embeddings=True,
        num_key_value_heads=None,
    ),
]
WRONG = [
    ("topk_group", {"n_group": 2, "topk_group": 3}),
    ("sliding_window", {"sliding_window": None, "layer_types": ["sliding_attention"] * 5}),
]
