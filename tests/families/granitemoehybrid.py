"""Tests' data of granitemoehybrid: tiny models, and options that are refused."""

from __future__ import annotations

from family_cases import MAMBA, MULTIPLIERS, USUAL, case, experts

NONE = {"num_local_experts": 0, "num_experts_per_tok": 0}
CASES = [
    case("granitemoehybrid", "dense", **MAMBA, **NONE, shared_intermediate_size=80),
    experts("granitemoehybrid", "experts", **MAMBA, intermediate_size=24, shared_intermediate_size=50),
    experts(
        "granitemoehybrid",
        "options",
        **MAMBA
        | {
            "layer_types": ["mamba", "mamba", "attention"],
            "mamba_n_heads": 6,
            "mamba_n_groups": 3,
            "mamba_d_state": 11,
            "mamba_d_conv": 3,
            "mamba_d_head": 24,
            "mamba_expand": 3,
        },
        **MULTIPLIERS,
        intermediate_size=24,
        shared_intermediate_size=40,
        position_embedding_type="rope",
        mamba_conv_bias=False,
        mamba_proj_bias=True,
        time_step_limit=[0.5, 1.5],
    ),
]
SIZES = USUAL | {"num_experts_per_tok": 2, "num_local_experts": 4, "mamba_n_heads": 4}
REFUSED = [
    ("layer_types", {"layer_types": ["mamba"] * 4 + ["sliding_attention"]}),
    ("position_embedding_type", {"position_embedding_type": "alibi"}),
    ("mamba_norm_before_gate", {"mamba_norm_before_gate": True}),
    ("hidden_act", {"hidden_act": "gelu"}),
]
WRONG = [
    ("mamba_n_heads", {"mamba_n_heads": 5}),
    ("mamba_d_head", {"mamba_d_head": 12}),
    ("mamba_n_groups", {"mamba_n_groups": 3}),
    ("time_step_limit", {"time_step_limit": [1.0, 0.5]}),
    ("time_step_limit", {"time_step_limit": [0.0]}),
    ("mamba_d_state", {"mamba_d_state": 0}),
]
