"""Tests' data of olmoe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, case

CASES = [
    case("olmoe", "plain", num_experts=8, num_experts_per_tok=3, intermediate_size=28),
    case(
        "olmoe",
        "clip",
        num_experts=5,
        num_experts_per_tok=2,
        intermediate_size=24,
        hidden_size=40,
        num_key_value_heads=4,
        clip_qkv=0.4,
        norm_topk_prob=True,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_experts": 4}
REFUSED = [
    ("head_dim", {"head_dim": 16}),
]
WRONG = [
    ("clip_qkv", {"clip_qkv": -1.0}),
]
