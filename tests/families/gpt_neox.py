"""Tests' data of gpt_neox: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, case

CASES = [
    case("gpt_neox", "plain", num_key_value_heads=4, hidden_size=64),
    case(
        "gpt_neox",
        "options",
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0},
        num_key_value_heads=4,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu_new",
        hidden_size=40,
        layer_norm_eps=1e-3,
    ),
]
SIZES = USUAL | {"num_key_value_heads": 4}
REFUSED = [
    ("num_key_value_heads", {"num_key_value_heads": 1}),
    ("rope_theta", {"num_key_value_heads": 4, "rotary_emb_base": 10000, "rope_theta": 5000.0}),
]
