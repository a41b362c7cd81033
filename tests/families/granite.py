"""Tests' data of granite: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("granite", "plain"),
    case(
        "granite",
        "multipliers",
        embedding_multiplier=12.0,
        attention_multiplier=0.15,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
]
