"""OLMoE: experts, norms on whole query and key, which may be clipped (transformers/models/olmoe)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, head_dim, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import MLP, TensorNames
from lapinfer.families.olmo import clip_qkv
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads", most=4096)
    if head_dim(config) * heads != width:  # the norm on queries is as wide as the model
        raise config.unsupported("head_dim", f"hidden_size / num_attention_heads, {width / heads:g}, in this family")
    bias, norm = config.flag("attention_bias", False), rms_norm(config, eps=1e-5)
    clip = clip_qkv(config)
    attention = attention_spec(
        config, rope_of(config), qkv_bias=bias, o_bias=bias, qk_norm=norm, qk_norm_full=True, clip=clip
    )
    router = router_spec(config, "num_experts", normalise=config.flag("norm_topk_prob", False))
    layer = LayerSpec(attention, routed_feed_forward(config, router, "intermediate_size"), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


FAMILY = Family(("olmoe",), spec, TensorNames(experts=MLP))
