"""GLM-4: norms on both sides, half of each head turns in neighbouring pairs (transformers/models/glm4)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gemma2 import sandwich_layer
from lapinfer.families.gguf import GGUF, biased, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import ModelSpec

MODULES = {
    **LLAMA,
    "attn_post_norm": ("post_self_attn_layernorm",),
    "gate_up": ("mlp.gate_up_proj",),
    "ff_post_norm": ("post_mlp_layernorm",),
}


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=128, num_key_value_heads=2)
    rope = rope_of(config, partial=0.5, interleaved=True)
    attention = attention_spec(config, rope, qkv_bias=config.flag("attention_bias", True))
    norm = rms_norm(config, eps=1.5625e-7)
    return model_spec(config, [sandwich_layer(attention, feed_forward_spec(config), norm)] * layer_count(config), norm)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    """The biases of queries, keys and values are found with the tensors, where they are not all there."""
    config = {"partial_rotary_factor": 1.0} | decoder_config(metadata, partial_rotary=True)
    return config | {"attention_bias": biased(metadata, "attn_q", "attn_k", "attn_v")}


IGNORED = ("num_nextn_predict_layers",)
FAMILY = Family(("glm4",), spec, TensorNames(MODULES), gguf=GGUF("glm4", gguf_config), ignored_keys=IGNORED)
