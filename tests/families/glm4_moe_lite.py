"""Tests' data of glm4_moe_lite: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LATENT, LATENT_SIZES, USUAL, case

CASES = [
    case("glm4_moe_lite", "plain", **LATENT, q_lora_rank=28),
    case(
        "glm4_moe_lite",
        "options",
        **LATENT,
        q_lora_rank=None,
        num_hidden_layers=3,
        mlp_layer_types=["sparse", "dense", "sparse"],
        n_group=2,
        topk_group=1,
        n_shared_experts=2,
        norm_topk_prob=False,
        attention_bias=True,
        rope_interleave=False,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | LATENT_SIZES
REFUSED = [
    ("first_k_dense_replace", {"first_k_dense_replace": 2}),
    ("mlp_layer_types", {"mlp_layer_types": ["gated"] * 5}),
]
