"""Tests' data of phi3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LONG, case

CASES = [
    case("phi3", "plain"),
    case("phi3", "partial", {"rope_type": "default", "partial_rotary_factor": 0.5}, sliding_window=9),
    case(
        "phi3",
        "longrope_long",
        LONG | {"partial_rotary_factor": 0.5},
        hidden_size=64,
        original_max_position_embeddings=16,
        tie_word_embeddings=True,
    ),
    case(
        "phi3",
        "longrope_short",
        LONG | {"partial_rotary_factor": 0.5},
        hidden_size=64,
        original_max_position_embeddings=32,
    ),
]
REFUSED = [
    ("rope_type", {"rope_parameters": {"rope_type": "llama3"}}),
]
