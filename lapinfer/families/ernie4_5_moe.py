"""ERNIE 4.5 with experts in some layers, a bias that only selects, shared ones (transformers/models/ernie4_5_moe)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, layer_count, model_spec, rms_norm
from lapinfer.families.deepseek_v2 import SHARED
from lapinfer.families.ernie4_5 import ernie_attention
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import MLP, Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(num_key_value_heads=4, moe_k=6, moe_num_experts=64, moe_num_shared_experts=2)
    config = config.with_defaults(num_experts=config.get("moe_num_experts"), num_experts_per_tok=config.get("moe_k"))
    config.expect(moe_gate="topk", moe_use_aux_free=True)
    router = router_spec(
        config,
        "num_experts",
        normalise=True,
        selection_bias=True,
        least_sum=config.number("moe_norm_min", 1e-12, least=0.0, most=1e3),
    )
    key, width = "moe_num_shared_experts", config.integer("moe_intermediate_size", 1536)
    shared = key, config.integer(key, least=0, most=256) * width
    experts = routed_feed_forward(
        config.with_defaults(moe_intermediate_size=width), router, "moe_intermediate_size", shared
    )
    bias, norm = config.flag("use_bias", False), rms_norm(config, eps=1e-5)
    sparse = sparse_layers(config)
    if bias and shared[1] and any(sparse):
        raise config.unsupported("use_bias", "false, where there are shared experts")
    attention, dense = ernie_attention(config), feed_forward_spec(config, bias=bias)
    layers = [LayerSpec(attention, experts if s else dense, norm, norm) for s in sparse]
    return model_spec(config, layers, norm, tied=True, head_bias=bias)


def sparse_layers(config: Config) -> list[bool]:
    """Every so many, from a first one to a last one, which −1 means as well as the last of all."""
    count = layer_count(config)
    first, last = (
        config.integer(f"moe_layer_{at}_index", usual, least=-1) for at, usual in (("start", 1), ("end", -1))
    )
    step = config.integer("moe_layer_interval", 1)
    return [(i + 1) % step == 0 and first <= i <= (count - 1 if last == -1 else last) for i in range(count)]


def selection_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """The biases that only select, each stored as one row."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names):
        if spec.layers[i].feed_forward.router is not None:
            stored = [f"{prefix}mlp.{gate}moe_statics.e_score_correction_bias" for gate in ("", "gate.")]
            found = next((name for name in stored if name in names), stored[0])
            sources[f"layers.{i}.router.selection_bias"] = (Source(found, transposed=True),)
    return sources


IGNORED = ("intermediate_size", "num_nextn_predict_layers", "moe_capacity", "moe_k", "moe_num_experts")
FAMILY = Family(
    ("ernie4_5_moe",), spec, TensorNames(experts=MLP, shared=SHARED), selection_sources, ignored_keys=IGNORED
)
