"""Tests' data of stablelm: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("stablelm", "plain", hidden_size=64),
    case(
        "stablelm",
        "parallel",
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
        hidden_size=80,
        use_qkv_bias=True,
        qk_layernorm=True,
        use_parallel_residual=True,
        tie_word_embeddings=True,
        num_key_value_heads=1,
    ),
    case("stablelm", "norms", hidden_size=64, qk_layernorm=True, layer_norm_eps=1e-3, hidden_act="gelu"),
]
REFUSED = [
    ("head_dim", {"head_dim": 16}),
]
