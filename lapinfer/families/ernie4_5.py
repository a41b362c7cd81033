"""ERNIE 4.5: Llama whose heads turn in neighbouring pairs (transformers/models/ernie4_5)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, projection_biases
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import AttentionSpec, LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=128, num_key_value_heads=2)
    norm = rms_norm(config, eps=1e-5)
    feed_forward = feed_forward_spec(config, bias=config.flag("use_bias", False))
    layer = LayerSpec(ernie_attention(config), feed_forward, norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm, tied=True)


def ernie_attention(config: Config) -> AttentionSpec:
    bias = config.flag("use_bias", False)
    return attention_spec(config, rope_of(config, 5e5, interleaved=True), qkv_bias=bias, o_bias=bias)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    biases = projection_biases(metadata)
    return decoder_config(metadata) | {"use_bias": all(biases.values())}


FAMILY = Family(("ernie4_5",), spec, gguf=GGUF("ernie4_5", gguf_config))
