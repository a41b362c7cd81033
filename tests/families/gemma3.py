"""Tests' data of gemma3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
CASES = [
    case("gemma3_text", "plain", rope_parameters=ROPE, head_dim=16, sliding_window=6, num_hidden_layers=7),
    case(
        "gemma3_text",
        "options",
        rope_parameters=ROPE,
        head_dim=20,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=24,
        final_logit_softcapping=20.0,
        attention_bias=True,
        num_key_value_heads=1,
    ),
]
REFUSED = [
    ("use_bidirectional_attention", {"use_bidirectional_attention": True}),
    ("attn_logit_softcapping", {"attn_logit_softcapping": 50.0}),
    ("rope_parameters", {"rope_parameters": {"rope_theta": 1e4}}),
]
