"""Granite 3 with experts, weighed by the softmax of the chosen logits (transformers/models/granitemoe)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.experts import GRANITE, expert_sources, routed_feed_forward, router_spec
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config, family: str = "granitemoe", shared: tuple[str, int] = ("", 0)) -> ModelSpec:
    """`family` and `shared` are for granitemoeshared, which is the same in everything else."""
    bias, norm = config.flag("attention_bias", False), rms_norm(config)
    scale = config.number("attention_multiplier", 1.0)
    attention = attention_spec(config, rope_of(config), scale=scale, qkv_bias=bias, o_bias=bias)
    router = router_spec(config, "num_local_experts", score="logits")
    experts = routed_feed_forward(config, router, "intermediate_size", shared)
    layer = LayerSpec(attention, experts, norm, norm, residual_scale=config.number("residual_multiplier", 1.0))
    return model_spec(
        config,
        family,
        [layer] * layer_count(config),
        norm,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return expert_sources(spec, names, GRANITE)
