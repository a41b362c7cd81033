"""What the families with experts share: the usual config keys of a router and of experts' widths."""

from __future__ import annotations

from typing import Any, Final

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count
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
