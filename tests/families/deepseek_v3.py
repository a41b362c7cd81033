"""Tests' data of deepseek_v3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LATENT, LATENT_SIZES, USUAL, YARN, case

CASES = [
    case("deepseek_v3", "plain", **LATENT, q_lora_rank=28, n_group=1, topk_group=1, first_k_dense_replace=0),
    case(  # values wider than the latent that they are made of
        "deepseek_v3",
        "wide_values",
        **LATENT | {"v_head_dim": 128},
        q_lora_rank=28,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    case(
        "deepseek_v3",
        "groups",
        **LATENT | {"n_routed_experts": 9, "num_experts_per_tok": 4},
        q_lora_rank=None,
        n_group=3,
        topk_group=2,
        n_shared_experts=3,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        num_hidden_layers=3,
    ),
    case(
        "deepseek_v3",
        "yarn",
        YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        **LATENT,
        q_lora_rank=28,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=0,
        rope_interleave=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
]
SIZES = USUAL | LATENT_SIZES
REFUSED = [
    ("moe_layer_freq", {"n_group": 1, "topk_group": 1, "moe_layer_freq": 2}),
]
WRONG = [
    ("n_routed_experts", {"n_routed_experts": -8}),
    ("n_group", {"n_group": 3}),
    ("n_group", {"n_group": 16}),  # a group's score is the sum of two
    ("topk_group", {"n_group": 8, "topk_group": 9}),
    ("topk_group", {"n_group": 8, "topk_group": 1, "num_experts_per_tok": 3}),
    ("q_lora_rank", {"q_lora_rank": 0}),
]
