"""Mistral: Llama with a sliding window on every layer (transformers/models/mistral)."""

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
    window_size,
    windows,
)
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config.refuse("attention_bias", "mlp_bias")
    rope = rope_of(config)
    window = window_size(config)
    if "layer_types" in config and set(windows(config, (), window)) != {window}:
        raise config.unsupported("layer_types", "the same window on every layer")
    attention = attention_spec(config, rope, window=window)
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, "mistral", [layer] * layer_count(config), norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names)
