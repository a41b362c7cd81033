"""Tests' data of lfm2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import HYBRID, MIXED, case

CASES = [
    case("lfm2", "plain", **HYBRID, block_multiple_of=40),
    case(
        "lfm2",
        "options",
        hidden_size=40,
        intermediate_size=50,
        num_hidden_layers=4,
        full_attn_idxs=[1],
        conv_bias=True,
        conv_L_cache=4,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=False,
    ),
    case(
        "lfm2",
        "multiplier",
        {"rope_type": "linear", "factor": 2.0},
        **HYBRID,
        conv_L_cache=1,
        block_multiple_of=24,
        block_ffn_dim_multiplier=1.3,
        head_dim=16,
        num_key_value_heads=1,
    ),
]
REFUSED = [
    ("layer_types", {"layer_types": ["conv"] * 4 + ["sliding_attention"]}),
]
WRONG = [
    ("layer_types", {"layer_types": MIXED[:4]}),
    ("full_attn_idxs", {"full_attn_idxs": [True]}),
    ("conv_L_cache", {"conv_L_cache": 0}),
    ("intermediate_size", {"intermediate_size": 1}),
    ("block_ff_dim", {"block_ff_dim": 1 << 24, "block_ffn_dim_multiplier": 2.0}),
    ("block_multiple_of", {"block_multiple_of": 0}),
]
