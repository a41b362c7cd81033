"""Gemma 2: norms before and after, alternating windows, soft caps (transformers/models/gemma2)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    MODULES,
    attention_spec,
    embed_scale,
    feed_forward_spec,
    layer_count,
    model_spec,
    named_sources,
    rms_norm,
    rope_of,
    soft_cap,
    window_size,
    windows,
)
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec

SANDWICH = {
    **MODULES,
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
    return model_spec(config, "gemma2", layers, norm, tied=True, embed_scale=embed_scale(config), logit_softcap=softcap)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names, SANDWICH)
