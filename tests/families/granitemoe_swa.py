"""Tests' data of granitemoe_swa: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import MULTIPLIERS, USUAL, experts

CASES = [
    experts("granitemoe_swa", "plain", sliding_window=6, num_hidden_layers=2),
    experts(
        "granitemoe_swa",
        "options",
        **MULTIPLIERS,
        shared_intermediate_size=56,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        layer_rope_theta=[0, 300.0],
    ),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4}
