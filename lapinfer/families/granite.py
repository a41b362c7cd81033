"""Granite 3: Llama with a multiplier on embedding, attention, residual and logits (transformers/models/granite)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    named_sources,
    rms_norm,
    rope_of,
)
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    rope = rope_of(config)
    scale = config.number("attention_multiplier", 1.0)
    attention = attention_spec(config, rope, scale=scale, qkv_bias=bias, o_bias=bias)
    feed_forward = feed_forward_spec(config, bias=config.flag("mlp_bias", False))
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward, norm, norm, residual_scale=config.number("residual_multiplier", 1.0))
    return model_spec(
        config,
        "granite",
        [layer] * layer_count(config),
        norm,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names)
