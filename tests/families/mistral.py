"""Tests' data of mistral: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("mistral", "window", sliding_window=7),
    case("mistral", "full", sliding_window=None, head_dim=16, tie_word_embeddings=True),
]
REFUSED = [
    ("layer_types", {"layer_types": ["full_attention"] * 5}),
]
