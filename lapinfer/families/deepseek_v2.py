"""DeepSeek-V2: latent attention, experts in groups, shared experts (transformers/models/deepseek_v2).

`norm_topk_prob` is not used there.
"""

from __future__ import annotations

from collections.abc import Iterable

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, layer_count, model_spec, rms_norm
from lapinfer.families.experts import grouped, routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.latent import latent_attention, latent_sources
from lapinfer.families.names import MLP, Layout, TensorNames
from lapinfer.spec import AttentionSpec, LayerSpec, ModelSpec, RouterSpec

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
    return deepseek_model(
        config, [latent_attention(config)] * layer_count(config), router, sparse_after(config, 0), shared=2
    )


def deepseek_model(
    config: Config, attentions: Iterable[AttentionSpec], router: RouterSpec, sparse: Iterable[bool], shared: int
) -> ModelSpec:
    """Layers with these attentions, of which some have experts; `shared` experts are the family's default."""
    config.expect(scoring_func=router.score, moe_layer_freq=1)
    if config.get("n_shared_experts", shared) is None:  # null says that there are none
        shared = 0
    shared = config.integer("n_shared_experts", shared, least=0, most=256)
    together = "n_shared_experts", shared * config.integer("moe_intermediate_size")
    experts, norm = routed_feed_forward(config, router, "moe_intermediate_size", together), rms_norm(config)
    layers = [
        LayerSpec(attention, experts if s else feed_forward_spec(config), norm, norm)
        for attention, s in zip(attentions, sparse, strict=True)
    ]
    return model_spec(config, layers, norm)


def sparse_after(config: Config, dense: int) -> list[bool]:
    """Which layers have experts: those after the first `first_k_dense_replace`, or `dense`."""
    dense = config.integer("first_k_dense_replace", dense, least=0)
    return [i >= dense for i in range(layer_count(config))]


FAMILY = Family(("deepseek_v2",), spec, TensorNames(experts=MLP, shared=SHARED), latent_sources, ignored_keys=IGNORED)
