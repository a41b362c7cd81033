"""Mistral: Llama with a sliding window on every layer (transformers/models/mistral)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    context,
    feed_forward_spec,
    head_dim,
    layer_count,
    model_spec,
    named_sources,
    rms_norm,
    window_size,
    windows,
)
from lapinfer.families.rope import rope_section, rope_spec
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    rope = rope_spec(rope_section(config), head_dim(config), context(config))
    window = window_size(config)
    if "layer_types" in config and set(windows(config, (), window)) != {window}:
        raise config.unsupported("layer_types", "the same window on every layer")
    attention = attention_spec(config, rope, window=window)
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, "mistral", [layer] * layer_count(config), norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names)
