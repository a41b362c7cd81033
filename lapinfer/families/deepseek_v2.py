"""DeepSeek-V2: latent attention, experts in groups, shared experts (transformers/models/deepseek_v2).

`norm_topk_prob` is not used there.
"""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, layer_count, model_spec, rms_norm
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.latent import latent_attention, latent_sources
from lapinfer.families.names import MLP, Layout, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec, RouterSpec

IGNORED = (
    "head_dim", "qk_head_dim", "intermediate_size", "n_group", "topk_group", "topk_method", "norm_topk_prob",
    "num_nextn_predict_layers",
)  # fmt: skip
"""Sizes that follow from others or that no layer has, what only some ways of choosing experts use, and layers that
guess further tokens."""

SHARED = Layout(
    ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"), "mlp.shared_experts.down_proj.weight"
)


def spec(config: Config) -> ModelSpec:
    config.refuse("mlp_bias")
    method = config.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.unsupported("topk_method", "greedy, group_limited_greedy")
    router = router_spec(config, "n_routed_experts", scale=config.number("routed_scaling_factor", 1.0, most=1e6))
    if method == "group_limited_greedy":
        router = grouped(config, router)
    return deepseek_model(config, router, dense=0, shared=2)


def grouped(config: Config, router: RouterSpec) -> RouterSpec:
    """The router with DeepSeek's groups, which must hold enough experts."""
    groups = config.integer("n_group", most=router.n_experts)
    if router.n_experts % groups:
        raise config.wrong("n_group", f"a divisor of the number of experts, {router.n_experts}")
    top = config.integer("topk_group", most=groups)
    size = router.n_experts // groups
    if router.group_best > size:
        raise config.wrong("n_group", f"groups of at least {router.group_best} of the {router.n_experts} experts")
    if router.top_k > top * size:
        raise config.wrong("topk_group", f"groups with at least {router.top_k} experts; each has {size}")
    return replace(router, groups=groups, top_groups=top)


def deepseek_model(config: Config, router: RouterSpec, dense: int, shared: int, interleaved: bool = True) -> ModelSpec:
    """What V2 and V3 have in common; `dense` first layers and `shared` experts are the family's defaults."""
    config.expect(scoring_func=router.score, moe_layer_freq=1)
    if config.get("n_shared_experts", shared) is None:  # null says that there are none
        shared = 0
    shared = config.integer("n_shared_experts", shared, least=0, most=256)
    together = "n_shared_experts", shared * config.integer("moe_intermediate_size")
    experts = routed_feed_forward(config, router, "moe_intermediate_size", together)
    attention, norm = latent_attention(config, interleaved), rms_norm(config)
    dense = config.integer("first_k_dense_replace", dense, least=0)
    layers = [
        LayerSpec(attention, feed_forward_spec(config) if i < dense else experts, norm, norm)
        for i in range(layer_count(config))
    ]
    return model_spec(config, layers, norm)


FAMILY = Family(("deepseek_v2",), spec, TensorNames(experts=MLP, shared=SHARED), latent_sources, ignored_keys=IGNORED)
