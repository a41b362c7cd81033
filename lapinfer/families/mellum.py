"""Mellum 2: Qwen 3 with experts, and rotary positions by layer type (transformers/models/mellum)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    ropes_by_layer_type,
    window_size,
    windows,
)
from lapinfer.families.experts import routed_feed_forward, router_spec, sparse_by_type
from lapinfer.families.family import Family
from lapinfer.families.names import MLP, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=128, num_key_value_heads=4)
    router = router_spec(config, "num_experts", normalise=config.flag("norm_topk_prob", True))
    experts, dense = routed_feed_forward(config, router, "moe_intermediate_size"), feed_forward_spec(config)
    bias, norm = config.flag("attention_bias", False), rms_norm(config)
    full, sliding = ropes_by_layer_type(config, theta=5e5)
    sparse = sparse_by_type(config, [True] * layer_count(config))
    layers = [
        LayerSpec(
            attention_spec(config, sliding if w else full, window=w, qkv_bias=bias, o_bias=bias, qk_norm=norm),
            experts if s else dense,
            norm,
            norm,
        )
        for w, s in zip(windows(config, [False] * len(sparse), window_size(config, 1024)), sparse, strict=True)
    ]
    return model_spec(config, layers, norm)


IGNORED = (
    "num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types", "use_qk_norm",
    "use_sliding_window", "max_window_layers",
)  # fmt: skip
FAMILY = Family(("mellum",), spec, TensorNames(experts=MLP), ignored_keys=IGNORED)
