"""Tests' data of nanochat: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import YARN, case

CASES = [
    case("nanochat", "plain"),
    case(
        "nanochat",
        "options",
        YARN,
        attention_bias=True,
        tie_word_embeddings=True,
        final_logit_softcapping=None,
        hidden_act="gelu",
        num_key_value_heads=None,
        hidden_size=40,
        rms_norm_eps=1e-3,
    ),
]
