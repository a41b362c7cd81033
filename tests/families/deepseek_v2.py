"""Tests' data of deepseek_v2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LATENT, LATENT_SIZES, USUAL, YARN, case

CASES = [
    case("deepseek_v2", "plain", **LATENT, q_lora_rank=None, first_k_dense_replace=1),
    case(
        "deepseek_v2",
        "groups",
        **LATENT,
        q_lora_rank=28,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        n_shared_experts=1,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    case(
        "deepseek_v2",
        "yarn",
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
        **LATENT | {"n_routed_experts": 5, "num_experts_per_tok": 1},
        q_lora_rank=None,
        attention_bias=True,
        n_shared_experts=1,
    ),
]
SIZES = USUAL | LATENT_SIZES
REFUSED = [
    ("mlp_bias", {"mlp_bias": True}),
    ("topk_method", {"topk_method": "noaux_tc"}),
    ("scoring_func", {"scoring_func": "sigmoid"}),
    ("num_key_value_heads", {"num_key_value_heads": 2}),
]
WRONG = [
    ("n_shared_experts", {"n_shared_experts": -1}),
    ("n_group", {"topk_method": "group_limited_greedy"}),
    ("kv_lora_rank", {"kv_lora_rank": 0}),
]
