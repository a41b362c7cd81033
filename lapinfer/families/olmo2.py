"""OLMo 2: norms only after attention and feed-forward, and on whole query and key (transformers/models/olmo2)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    MODULES,
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    named_sources,
    rms_norm,
    rope_of,
)
from lapinfer.spec import LayerSpec, ModelSpec

POST_NORMS = {
    **MODULES,
    "attn_post_norm": ("post_attention_layernorm",),
    "ff_post_norm": ("post_feedforward_layernorm",),
}


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    norm = rms_norm(config, eps=1e-5)
    rope = rope_of(config)
    attention = attention_spec(config, rope, qkv_bias=bias, o_bias=bias, qk_norm=norm, qk_norm_full=True)
    layer = LayerSpec(attention, feed_forward_spec(config), None, None, norm, norm)
    return model_spec(config, "olmo2", [layer] * layer_count(config), norm)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names, POST_NORMS)
