"""What the families with experts share: the usual config keys of a router and of experts' widths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count, types_of_layers
from lapinfer.spec import FeedForwardSpec, RouterSpec

MOST_EXPERTS: Final = 4096
MOST_PARTS: Final = 1 << 17
"""Of all layers together: each expert of each layer has names of its own."""

EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
"""The number of experts, by its names in different families: transformers 5 writes some under another one."""


def most_parts(config: Config) -> int:
    """The largest number of experts, or of latent heads, of one layer."""
    return min(MOST_EXPERTS, MOST_PARTS // layer_count(config))


def router_spec(config: Config, count: str, **options: Any) -> RouterSpec:
    """A router with the usual keys; `count` is the family's name for the number of experts."""
    count = next((key for key in (count, *EXPERT_COUNTS) if key in config), count)
    config.know(*EXPERT_COUNTS)
    experts = config.integer(count, most=most_parts(config))
    return RouterSpec(experts, config.integer("num_experts_per_tok", most=experts), **options)


def routed_feed_forward(
    config: Config, router: RouterSpec, width: str, shared: tuple[str, int] = ("", 0), shared_gate: bool = False
) -> FeedForwardSpec:
    """Experts as wide as the key `width` says, and shared ones: their key in config.json and width together."""
    each = config.integer(width)
    key, together = shared
    count = -(-together // each)
    if count > most_parts(config):
        raise config.wrong(key, f"at most {most_parts(config)} times {width}, {each}")
    gate = shared_gate and count > 0
    return FeedForwardSpec(each, config.activation(), True, False, router, count, gate, together)


def sparse_layers(config: Config) -> list[bool]:
    """Which layers have experts, by Qwen's keys: every `decoder_sparse_step`th, without `mlp_only_layers`."""
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise config.wrong("mlp_only_layers", "a list of layer numbers")
    step = config.integer("decoder_sparse_step", 1)
    return [i not in dense and (i + 1) % step == 0 for i in range(layer_count(config))]


def sparse_by_type(config: Config, usual: list[bool]) -> list[bool]:
    """Which layers have experts: `mlp_layer_types` where config.json has it, else the `usual` ones."""
    if "mlp_layer_types" not in config:
        return usual
    return [kind == "sparse" for kind in types_of_layers(config, "mlp_layer_types", ("dense", "sparse"))]


def sigmoid_router(config: Config, *, normalise: bool, scale: float, groups: tuple[int, int]) -> RouterSpec:
    """DeepSeek-V3's: sigmoids, a bias that only selects, groups by the sum of their two best.

    normalise, scale, groups (all, and how many take part): the family's defaults.
    """
    router = router_spec(
        config,
        "n_routed_experts",
        score="sigmoid",
        normalise=config.flag("norm_topk_prob", normalise),
        eps=1e-20,
        scale=config.number("routed_scaling_factor", scale, most=1e6),
        selection_bias=True,
        group_best=2,
    )
    return grouped(config.with_defaults(n_group=groups[0], topk_group=groups[1]), router)


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
