"""AFMoE (Trinity): attention with a gate, only sliding layers have positions, norms before and after each half.

Reference: transformers/models/afmoe. Experts are chosen by sigmoids with a bias that only selects.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    window_size,
    windows,
)
from lapinfer.families.deepseek_v2 import SHARED
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, MLP, Layout, Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec

MODULES: Mapping[str, tuple[str, ...]] = {
    **LLAMA,
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.gate_proj"),
    "attn_post_norm": ("post_attention_layernorm",),
    "ff_norm": ("pre_mlp_layernorm",),
    "ff_post_norm": ("post_mlp_layernorm",),
}
NAMES = TensorNames(
    MODULES, experts=Layout(MLP.gate_up, MLP.down, "mlp.router.gate.weight"), shared=SHARED,
    selection_bias="mlp.expert_bias",
)  # fmt: skip


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(head_dim=128, num_experts=64, num_experts_per_tok=6)
    norm, experts = rms_norm(config, eps=1e-5), _experts(config)
    dense = config.integer("num_dense_layers", 1, least=0)
    layers = [
        LayerSpec(attention, experts if i >= dense else feed_forward_spec(config), norm, norm, norm, norm)
        for i, attention in enumerate(_attentions(config))
    ]
    scale = math.sqrt(config.integer("hidden_size")) if config.flag("mup_enabled", False) else 1.0
    return model_spec(config, layers, norm, embed_scale=scale)


def _attentions(config: Config) -> list[AttentionSpec]:
    period, window = config.integer("global_attn_every_n_layers", 4), window_size(config, 1024)
    slides = [(i + 1) % period != 0 for i in range(layer_count(config))]
    bias, rope, norm = config.flag("attention_bias", False), rope_of(config), rms_norm(config, eps=1e-5)
    return [
        attention_spec(config, rope if w else None, window=w, qkv_bias=bias, o_bias=bias, qk_norm=norm, gated=True)
        for w in windows(config, slides, window)
    ]


def _experts(config: Config) -> FeedForwardSpec:
    config.expect(score_func="sigmoid", route_norm=True, n_group=1, topk_group=1)
    config.expect(num_expert_groups=1, num_limited_groups=1)
    router = router_spec(
        config, "num_experts", score="sigmoid", normalise=True, eps=1e-20, selection_bias=True,
        scale=config.number("route_scale", 1.0, most=1e6),
    )  # fmt: skip
    shared = config.integer("num_shared_experts", 2, least=0, most=256)
    together = "num_shared_experts", shared * config.integer("moe_intermediate_size")
    return routed_feed_forward(config, router, "moe_intermediate_size", together)


def more_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """Biases of queries, keys and values; the gate has none."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names, NAMES):
        attention = spec.layers[i].attention
        if attention is not None and attention.qkv_bias:
            none = Source("", stop=attention.qkv_rows - attention.gate_start)
            stored = (Source(f"{prefix}{module}.bias") for module in MODULES["qkv"][:3])
            sources[f"layers.{i}.qkv.bias"] = (*stored, none)
    return sources


IGNORED = ("intermediate_size", "load_balance_coeff", "use_grouped_mm")
FAMILY = Family(("afmoe",), spec, NAMES, more_sources, ignored_keys=IGNORED)
