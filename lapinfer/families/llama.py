"""Llama: RMS norms, rotary positions, grouped heads, gated SiLU (transformers/models/llama).

`lapinfer` is what a trainer calls a Llama whose feed-forwards no other program would run (fff.py).
"""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, projection_biases
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    attention = attention_spec(config, rope_of(config), qkv_bias=bias, o_bias=bias)
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config, bias=config.flag("mlp_bias", False)), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    """With a window it is a Mistral, which llama.cpp calls llama, too."""
    config = decoder_config(metadata, windows=True, rope_freqs=True) | projection_biases(metadata)
    return config | {"model_type": "mistral"} if "sliding_window" in config else config


FAMILY = Family(("llama", "lapinfer"), spec, gguf=GGUF("llama", gguf_config, permuted=True))
