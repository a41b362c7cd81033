"""Qwen 3 with experts, in all or in some layers (transformers/models/qwen3_moe)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, model_spec, rms_norm, rope_of, window_in_use
from lapinfer.families.experts import routed_feed_forward, router_spec, sparse_layers
from lapinfer.families.family import Family
from lapinfer.families.names import MLP, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    router = router_spec(config, "num_experts", normalise=config.flag("norm_topk_prob", False))
    experts = routed_feed_forward(config, router, "moe_intermediate_size")
    bias, norm, window = config.flag("attention_bias", False), rms_norm(config), window_in_use(config)
    attention = attention_spec(config, rope_of(config), window=window, qkv_bias=bias, o_bias=bias, qk_norm=norm)
    dense = feed_forward_spec(config)
    layers = [LayerSpec(attention, experts if s else dense, norm, norm) for s in sparse_layers(config)]
    return model_spec(config, layers, norm)


IGNORED = ("max_window_layers", "sliding_window", "use_qk_norm")
FAMILY = Family(("qwen3_moe",), spec, TensorNames(experts=MLP), ignored_keys=IGNORED)
