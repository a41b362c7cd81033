"""Tests' data of granitemoeshared: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import MULTIPLIERS, USUAL, experts

CASES = [
    experts("granitemoeshared", "plain", shared_intermediate_size=80),
    experts("granitemoeshared", "uneven", **MULTIPLIERS, intermediate_size=24, shared_intermediate_size=50),
    experts("granitemoeshared", "not_shared", num_experts_per_tok=1, shared_intermediate_size=0),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
WRONG = [
    ("shared_intermediate_size", {"shared_intermediate_size": 1 << 24}),
]
