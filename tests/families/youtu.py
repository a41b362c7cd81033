"""Tests' data of youtu: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LATENT, LATENT_SIZES, USUAL, YARN, case

PARTS = ("num_key_value_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
SMALL = {key: LATENT[key] for key in PARTS}
CASES = [
    case("youtu", "plain", **SMALL, q_lora_rank=28),
    case(
        "youtu",
        "options",
        YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        **SMALL,
        q_lora_rank=None,
        rope_interleave=False,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
]
SIZES = USUAL | {key: LATENT_SIZES[key] for key in PARTS}
REFUSED = [
    ("num_key_value_heads", {"num_key_value_heads": 2}),
    ("mlp_bias", {"mlp_bias": True}),
    ("kv_lora_rank", {"kv_lora_rank": 33}),
]
