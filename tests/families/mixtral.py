"""Tests' data of mixtral: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import USUAL, experts

CASES = [
    experts("mixtral", "plain"),
    experts("mixtral", "window_top1", num_experts_per_tok=1, sliding_window=7, head_dim=16, tie_word_embeddings=True),
    experts("mixtral", "every_expert", num_local_experts=4, num_experts_per_tok=4, intermediate_size=24),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
REFUSED = [
    ("quantization_config", {"quantization_config": {"quant_method": "mxfp4"}}),
]
WRONG = [
    ("num_experts_per_tok", {"num_experts_per_tok": 5}),
    ("num_local_experts", {"num_local_experts": 0}),
    ("num_local_experts", {"num_local_experts": 4097, "num_hidden_layers": 1}),
]
