"""Phi 3 and 4-mini: fused projections, a rotated part of each head, LongRoPE (transformers/models/phi3)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    context,
    feed_forward_spec,
    head_dim,
    layer_count,
    model_spec,
    rms_norm,
    window_size,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.families.rope import rope_kind, rope_section, rope_spec
from lapinfer.spec import LayerSpec, ModelSpec

FUSED = {**LLAMA, "qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}


def spec(config: Config) -> ModelSpec:
    config.refuse("attention_bias", "mlp_bias", "lm_head_bias")
    config.expect(full_attn_mod=1, interpolate_factor=1)
    config = config.with_defaults(original_max_position_embeddings=4096)
    section = rope_section(config)
    kind = rope_kind(section)
    if kind in ("su", "yarn"):  # the names that early files have for LongRoPE
        section = section.replaced(rope_type="longrope")
    elif kind not in ("default", "longrope"):
        raise section.unsupported("rope_type" if "rope_type" in section else "type", "default, longrope in this family")
    rope = rope_spec(section, head_dim(config), context(config), partial=True)
    attention = attention_spec(config, rope, window=window_size(config, None))
    norm = rms_norm(config, eps=1e-5)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    return {"sliding_window": None} | decoder_config(metadata, windows=True, partial_rotary=True, rope_factors=True)


FAMILY = Family(("phi3",), spec, TensorNames(FUSED), gguf=GGUF("phi3", gguf_config))
