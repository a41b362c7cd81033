"""Qwen 3 with experts, in all or in some layers (transformers/models/qwen3_moe)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, model_spec, rms_norm, rope_of, window_size
from lapinfer.families.experts import MLP, expert_sources, routed_feed_forward, router_spec, sparse_layers
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    router = router_spec(config, "num_experts", normalise=config.flag("norm_topk_prob", False))
    experts = routed_feed_forward(config, router, "moe_intermediate_size")
    bias, norm = config.flag("attention_bias", False), rms_norm(config)
    window = window_size(config) if config.flag("use_sliding_window", False) else None  # of every layer
    attention = attention_spec(config, rope_of(config), window=window, qkv_bias=bias, o_bias=bias, qk_norm=norm)
    dense = feed_forward_spec(config)
    layers = [LayerSpec(attention, experts if s else dense, norm, norm) for s in sparse_layers(config)]
    return model_spec(config, "qwen3_moe", layers, norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return expert_sources(spec, names, MLP)
