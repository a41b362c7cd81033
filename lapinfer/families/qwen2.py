"""Qwen 2 and 2.5: Llama with biases on query, key and value (transformers/models/qwen2)."""

from __future__ import annotations

from typing import Any

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
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    return qwen_model(config, qkv_bias=True)


def qwen_model(config: Config, **attention: Any) -> ModelSpec:
    """A dense Qwen with these options of attention; windows, where they are on, begin at a layer."""
    rope, norm, feed_forward = rope_of(config), rms_norm(config), feed_forward_spec(config)
    window = window_in_use(config)
    first = config.integer("max_window_layers", 28, least=0)
    slides = [window is not None and i >= first for i in range(layer_count(config))]
    layers = [
        LayerSpec(attention_spec(config, rope, window=w, **attention), feed_forward, norm, norm)
        for w in windows(config, slides, window)
    ]
    return model_spec(config, layers, norm)


FAMILY = Family(("qwen2",), spec, gguf=GGUF("qwen2"), ignored_keys=("sliding_window",))
