"""Phi 3.5 MoE: SparseMixer, LayerNorm, biases, LongRoPE with scales of its own (transformers/models/phimoe)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, context, head_dim, layer_count, model_spec, window_size
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import MIXTRAL, TensorNames
from lapinfer.families.rope import rope_kind, rope_section, rope_spec
from lapinfer.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    attention = attention_spec(config, _rope(config), window=window_size(config, None), qkv_bias=bias, o_bias=bias)
    jitter = config.number("router_jitter_noise", 0.01, least=0.0, most=1e3)
    router = router_spec(config, "num_local_experts", score="sparsemixer", jitter=jitter)
    if router.top_k != 2:
        raise config.unsupported("num_experts_per_tok", "2 in this family")
    norm = NormSpec("layer", config.number("rms_norm_eps", 1e-5, least=0.0, most=1.0), bias=True)
    layer = LayerSpec(attention, routed_feed_forward(config, router, "intermediate_size"), norm, norm)
    head_bias = config.flag("lm_head_bias", False)
    return model_spec(config, [layer] * layer_count(config), norm, head_bias=head_bias)


def _rope(config: Config) -> RopeSpec:
    """LongRoPE as the model was trained: other frequencies and another scale beyond the original length."""
    section = rope_section(config, 1e6)
    kind = rope_kind(section)
    if kind not in ("default", "longrope"):
        raise section.unsupported("rope_type" if "rope_type" in section else "type", "default, longrope in this family")
    rope = rope_spec(section, head_dim(config), context(config))
    if kind == "default":
        return rope
    short, long = (section.number(f"{which}_mscale", least=1e-3, most=1e3) for which in ("short", "long"))
    return replace(rope, scale=short, long_scale=long)


FAMILY = Family(("phimoe",), spec, TensorNames(experts=MIXTRAL))
