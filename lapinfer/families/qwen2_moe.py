"""Qwen 1.5 and 2 with experts: some layers are dense, a gated shared expert (transformers/models/qwen2_moe)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    window_in_use,
    windows,
)
from lapinfer.families.experts import routed_feed_forward, router_spec, sparse_layers
from lapinfer.families.family import Family
from lapinfer.families.names import MLP, Layout, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    router = router_spec(config, "num_experts", normalise=config.flag("norm_topk_prob", False))
    key = "shared_expert_intermediate_size"
    shared = key, config.integer(key, 5632)
    experts = routed_feed_forward(config, router, "moe_intermediate_size", shared, shared_gate=True)
    rope, bias, norm = rope_of(config), config.flag("qkv_bias", True), rms_norm(config)
    dense, window = feed_forward_spec(config), window_in_use(config)
    last = config.integer("max_window_layers", 28, least=0)
    slides = [window is not None and i < last and i % 2 == 0 for i in range(layer_count(config))]
    layers = [
        LayerSpec(attention_spec(config, rope, window=w, qkv_bias=bias), experts if sparse else dense, norm, norm)
        for w, sparse in zip(windows(config, slides, window), sparse_layers(config), strict=True)
    ]
    return model_spec(config, layers, norm)


FAMILY = Family(
    ("qwen2_moe",),
    spec,
    TensorNames(
        experts=MLP,
        shared=Layout(
            ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
            "mlp.shared_expert.down_proj.weight",
        ),
        shared_gate="mlp.shared_expert_gate.weight",
    ),
    ignored_keys=("sliding_window",),
)
