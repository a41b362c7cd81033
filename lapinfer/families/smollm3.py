"""SmolLM 3: Llama with every fourth layer without rotary positions (transformers/models/smollm3)."""

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
from lapinfer.families.gguf import GGUF, decoder_config, projection_biases
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    rope, norm = rope_of(config, theta=2e6), rms_norm(config)
    feed_forward = feed_forward_spec(config, bias=config.flag("mlp_bias", False))
    rotated, window = rotated_layers(config), window_in_use(config, None)
    slides = [window is not None and not r for r in rotated]
    layers = [
        LayerSpec(
            attention_spec(config, rope if r else None, window=w, qkv_bias=bias, o_bias=bias),
            feed_forward,
            norm,
            norm,
        )
        for r, w in zip(rotated, windows(config, slides, window), strict=True)
    ]
    return model_spec(config, layers, norm, tied=True)


def rotated_layers(config: Config) -> list[bool]:
    """Whether each layer has rotary positions; `no_rope_layers` is, despite its name, 1 where it has."""
    count = layer_count(config)
    every = config.integer("no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers")
    if rotated is None:
        return [(i + 1) % every != 0 for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) < count or any(r not in (0, 1) for r in rotated):
        raise config.wrong("no_rope_layers", f"a list of at least {count} times 0 or 1")
    return [bool(r) for r in rotated[:count]]


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    return decoder_config(metadata) | projection_biases(metadata)


FAMILY = Family(
    ("smollm3",),
    spec,
    gguf=GGUF("smollm3", gguf_config, permuted=True),
    ignored_keys=("sliding_window", "max_window_layers"),
)
