"""Llama: RMS norms, rotary positions, grouped heads, gated SiLU (transformers/models/llama)."""

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
    attention = attention_spec(config, rope, qkv_bias=bias, o_bias=bias)
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config, bias=config.flag("mlp_bias", False)), norm, norm)
    return model_spec(config, "llama", [layer] * layer_count(config), norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names)
