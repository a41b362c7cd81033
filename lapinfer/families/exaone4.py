"""EXAONE 4: norms after each half and on heads; only sliding layers have positions (transformers/models/exaone4)."""

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
    window_size,
    windows,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, sliding_layers
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import TensorNames
from lapinfer.families.olmo2 import MODULES
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(num_key_value_heads=32)
    norm, rope, feed_forward = rms_norm(config, eps=1e-5), rope_of(config), feed_forward_spec(config)
    window = window_size(config)
    slides = sliding_by_pattern(config) if window else [False] * layer_count(config)
    return model_spec(
        config,
        [
            LayerSpec(
                attention_spec(config, rope if w or not window else None, window=w, qk_norm=norm),
                feed_forward,
                None,
                None,
                norm,
                norm,
            )
            for w in windows(config, slides, window)
        ],
        norm,
    )


def sliding_by_pattern(config: Config) -> list[bool]:
    """Which layers slide: all but every so many, or as a string of L (local) and G (global) repeats itself."""
    key = "sliding_window_pattern"
    pattern, count = config.get(key, 4), layer_count(config)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return [pattern[i % len(pattern)] == "L" for i in range(count)]
    if "layer_types" in config:
        return [False] * count
    period = config.integer(key, 4, most=1 << 20)
    return [(i + 1) % period != 0 for i in range(count)]


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, windows=True, rope_freqs=True)
    return {"sliding_window": None} | config | sliding_layers(metadata)


IGNORED = ("sliding_window_pattern",)
GGUF_FILES = GGUF("exaone4", gguf_config)
FAMILY = Family(("exaone4",), spec, TensorNames(MODULES), gguf=GGUF_FILES, ignored_keys=IGNORED)
