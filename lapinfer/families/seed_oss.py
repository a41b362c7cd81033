"""Seed-OSS: Llama with biases on queries, keys and values (transformers/models/seed_oss)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, biased, decoder_config, projection_biases
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=128, num_key_value_heads=8)
    attention = attention_spec(
        config,
        rope_of(config),
        qkv_bias=config.flag("attention_bias", True),
        o_bias=config.flag("attention_out_bias", False),
    )
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config, bias=config.flag("mlp_bias", False)), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata) | projection_biases(metadata)
    return config | {
        "attention_bias": biased(metadata, "attn_q", "attn_k", "attn_v"),
        "attention_out_bias": biased(metadata, "attn_output"),
    }


CALLED = {"post_attention_norm": "ffn_norm"}
FAMILY = Family(("seed_oss",), spec, gguf=GGUF("seed_oss", gguf_config, called=CALLED))
