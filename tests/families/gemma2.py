"""Tests' data of gemma2: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("gemma2", "plain", head_dim=16, sliding_window=6, query_pre_attn_scalar=24),
    case(
        "gemma2",
        "options",
        head_dim=12,
        sliding_window=6,
        attention_bias=True,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        num_hidden_layers=3,
        tie_word_embeddings=False,
    ),
]
