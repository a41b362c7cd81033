"""Gemma 2: norms before and after, alternating windows, soft caps (transformers/models/gemma2)."""

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
    soft_cap,
    window_size,
    windows,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, sliding_layers
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec

SANDWICH = {
    **LLAMA,
    "attn_post_norm": ("post_attention_layernorm",),
    "ff_norm": ("pre_feedforward_layernorm",),
    "ff_post_norm": ("post_feedforward_layernorm",),
}


def sandwich_layer(attention: AttentionSpec, feed_forward: FeedForwardSpec, norm: NormSpec) -> LayerSpec:
    """The same kind of norm before and after each half of a layer."""
    return LayerSpec(attention, feed_forward, norm, norm, norm, norm)


def spec(config: Config) -> ModelSpec:
    config = config.with_defaults(head_dim=256, hidden_activation="gelu_pytorch_tanh")
    rope = rope_of(config)
    norm = rms_norm(config, offset=1.0)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    softcap = soft_cap(config, "attn_logit_softcapping", 50.0)
    feed_forward = feed_forward_spec(config, "hidden_activation")
    slides = [i % 2 == 0 for i in range(layer_count(config))]
    layers = [
        sandwich_layer(
            attention_spec(config, rope, window=w, scale=scale, softcap=softcap, qkv_bias=bias, o_bias=bias),
            feed_forward,
            norm,
        )
        for w in windows(config, slides, window_size(config))
    ]
    softcap = soft_cap(config, "final_logit_softcapping", 30.0)
    return model_spec(config, layers, norm, tied=True, embed_scale=embed_scale(config), logit_softcap=softcap)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, windows=True)
    if metadata.number("rope.freq_base_swa", config["rope_theta"]) != config["rope_theta"]:
        raise metadata.unsupported("gemma2.rope.freq_base_swa is not gemma2.rope.freq_base, which is not known")
    return gemma_config(metadata, config, largest=46)


def gemma_config(metadata: Metadata, config: dict[str, Any], largest: int) -> dict[str, Any]:
    """With what the Gemmas have in common. Queries of the 27B model, which has `largest` layers, are scaled by
    hidden/heads, those of others by the head's size: GGUF does not say it.
    """
    scaled_by_width = config["num_hidden_layers"] == largest
    width = config["hidden_size"] / config["num_attention_heads"]
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return config | {
        "query_pre_attn_scalar": width if scaled_by_width else config["head_dim"],
        "hidden_activation": "gelu_pytorch_tanh",
        **{key: metadata.number(key) or None for key in caps if metadata.get(key) is not None},
        **sliding_layers(metadata),
    }


FAMILY = Family(
    ("gemma2",),
    spec,
    TensorNames(SANDWICH),
    gguf=GGUF("gemma2", gguf_config, norms_plus_one=True),
    ignored_keys=("hidden_act", "sliding_window_size"),
)
