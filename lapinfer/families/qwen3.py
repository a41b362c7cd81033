"""Qwen 3: Llama with a norm on each query and key head (transformers/models/qwen3)."""

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
    config = config.with_defaults(head_dim=128)
    bias = config.flag("attention_bias", False)
    rope = rope_of(config)
    norm = rms_norm(config)
    window = window_size(config) if config.flag("use_sliding_window", False) else None
    first = config.integer("max_window_layers", 28, least=0)
    slides = [window is not None and i >= first for i in range(layer_count(config))]
    layers = [
        LayerSpec(
            attention_spec(config, rope, window=w, qkv_bias=bias, o_bias=bias, qk_norm=norm),
            feed_forward_spec(config),
            norm,
            norm,
        )
        for w in windows(config, slides, window)
    ]
    return model_spec(config, "qwen3", layers, norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names)
