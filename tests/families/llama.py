"""Tests' data of llama: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import LLAMA3, LONG, YARN, case

CASES = [
    case("llama", "plain"),
    case("llama", "odd", hidden_size=40, intermediate_size=90, vocab_size=131, num_hidden_layers=3),
    case("llama", "tied_mha", tie_word_embeddings=True, num_key_value_heads=4),
    case("llama", "bias_mqa", attention_bias=True, mlp_bias=True, num_key_value_heads=1, head_dim=20),
    case("llama", "linear", {"rope_type": "linear", "factor": 2.5}),
    case("llama", "llama3", LLAMA3 | {"original_max_position_embeddings": 16}, head_dim=32),
    case("llama", "yarn", YARN, head_dim=32),
    case("llama", "yarn_mscale", YARN | {"mscale": 0.7, "mscale_all_dim": 1.1, "beta_fast": 8.0, "truncate": False}),
    case("llama", "longrope", LONG | {"original_max_position_embeddings": 16, "factor": 4.0}, head_dim=8),
]
