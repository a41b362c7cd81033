"""Mistral: Llama with a sliding window on every layer (transformers/models/mistral)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    window_size,
    windows,
)
from lapinfer.families.family import Family
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config.refuse("attention_bias", "mlp_bias")
    window = window_size(config)
    if "layer_types" in config and set(windows(config, (), window)) != {window}:
        raise config.unsupported("layer_types", "the same window on every layer")
    norm = rms_norm(config)
    layer = LayerSpec(attention_spec(config, rope_of(config), window=window), feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


FAMILY = Family(("mistral",), spec)
