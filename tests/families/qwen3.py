"""Tests' data of qwen3: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import case

CASES = [
    case("qwen3", "plain", head_dim=16),
    case("qwen3", "bias", head_dim=24, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1),
    case("qwen3", "window", head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1),
]
