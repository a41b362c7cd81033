"""Phi 1, 1.5 and 2: attention and feed-forward side by side behind one layer norm, biases (transformers/models/phi)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    layer_count,
    layer_norm,
    model_spec,
    rope_of,
    ungated_feed_forward,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import TensorNames
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {
    "embed": ("embed_tokens",),
    "norm": ("final_layernorm",),
    "attn_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_layernorm",),
    "k_norm": ("self_attn.k_layernorm",),
    "o": ("self_attn.dense",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
}


def spec(config: Config) -> ModelSpec:
    norm = layer_norm(config)
    heads = norm if config.flag("qk_layernorm", False) else None
    attention = attention_spec(config, rope_of(config, partial=0.5), qkv_bias=True, o_bias=True, qk_norm=heads)
    layer = LayerSpec(attention, ungated_feed_forward(config, "gelu_new"), norm, None, parallel=True)
    return model_spec(config, [layer] * layer_count(config), norm, head_bias=True)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = {"partial_rotary_factor": 1.0} | decoder_config(metadata, partial_rotary=True, layer_norm="layer_norm_eps")
    return config | {"hidden_act": "gelu_new"}


FAMILY = Family(("phi",), spec, TensorNames(MODULES), gguf=GGUF("phi2", gguf_config))
