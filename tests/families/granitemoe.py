"""Tests' data of granitemoe: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import MULTIPLIERS, USUAL, experts

CASES = [
    experts("granitemoe", "plain"),
    experts("granitemoe", "multipliers", **MULTIPLIERS, num_local_experts=9, num_experts_per_tok=4),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
WRONG = [
    ("num_experts_per_tok", {"num_experts_per_tok": 0}),
]
