"""Gemma, the first: Llama with scaled embeddings and a gated GELU (transformers/models/gemma)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    embed_scale,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=256, num_key_value_heads=16).with_defaults(hidden_act="gelu_pytorch_tanh")
    config.expect(hidden_activation="gelu_pytorch_tanh")
    if config.get("hidden_act") == "gelu":  # what early files say, and never meant
        config = config.replaced(hidden_act="gelu_pytorch_tanh")
    bias, norm = config.flag("attention_bias", False), rms_norm(config, offset=1.0)
    layer = LayerSpec(
        attention_spec(config, rope_of(config), qkv_bias=bias, o_bias=bias), feed_forward_spec(config), norm, norm
    )
    return model_spec(config, [layer] * layer_count(config), norm, tied=True, embed_scale=embed_scale(config))


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    return decoder_config(metadata) | {"hidden_act": "gelu_pytorch_tanh"}


FAMILY = Family(("gemma",), spec, gguf=GGUF("gemma", gguf_config, norms_plus_one=True))
