"""Tests' data of gpt2: tiny models, and options that are refused."""

from __future__ import annotations

from typing import Any

from family_cases import Case


def gpt2(name: str, **config: Any) -> Case:
    sizes = {"vocab_size": 101, "n_embd": 40, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return Case("gpt2", name, sizes | {"bos_token_id": 1, "eos_token_id": 2} | config)


CASES = [
    gpt2("plain"),
    gpt2("options", n_inner=72, activation_function="gelu", tie_word_embeddings=False, scale_attn_weights=False),
    gpt2("by_layer", activation_function="relu", n_embd=36, n_layer=3, scale_attn_by_inverse_layer_idx=True),
]
SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
REFUSED = [
    ("add_cross_attention", {"add_cross_attention": True}),
]
