"""Qwen3-Next: layers of a gated delta rule, every fourth with gated attention; experts.

Reference: transformers/models/qwen3_next.
"""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, model_spec
from lapinfer.families.delta import mixers, sources, zero_centred
from lapinfer.families.experts import routed_feed_forward, router_spec, sparse_layers
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, MLP, Layout, Sources, TensorNames, layer_prefixes
from lapinfer.spec import FeedForwardSpec, LayerSpec, Mixer, ModelSpec

SHARED = Layout(
    ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
    "mlp.shared_expert.down_proj.weight",
)
NAMES = TensorNames(
    {ours: stored for ours, stored in LLAMA.items() if ours != "qkv"},
    experts=MLP,
    shared=SHARED,
    shared_gate="mlp.shared_expert_gate.weight",
)
SIZES = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok",
    "norm_topk_prob",
)  # fmt: skip
"""Of feed-forwards that all layers, or none, may have."""


def spec(config: Config) -> ModelSpec:
    sparse = sparse_layers(config)
    if config.integer("num_experts", 512, least=0) == 0:
        sparse = [False] * len(sparse)
    dense = None if all(sparse) else feed_forward_spec(config)
    experts = experts_of(config, normalise=config.flag("norm_topk_prob", True)) if any(sparse) else None
    config.know(*SIZES)
    layers = [
        layer_of(config, mixer, feed_forward)
        for mixer, is_sparse in zip(mixers(config), sparse, strict=True)
        if (feed_forward := experts if is_sparse else dense)
    ]
    return model_spec(config, layers, zero_centred(config))


def layer_of(config: Config, mixer: Mixer, feed_forward: FeedForwardSpec) -> LayerSpec:
    norm = zero_centred(config)
    return LayerSpec(mixer, feed_forward, norm, norm)


def experts_of(config: Config, *, normalise: bool) -> FeedForwardSpec:
    """Experts, and a gated shared one."""
    router = router_spec(config, "num_experts", normalise=normalise)
    key = "shared_expert_intermediate_size"
    shared = key, config.integer(key, 512)
    return routed_feed_forward(config, router, "moe_intermediate_size", shared, shared_gate=True)


def more_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    return sources(spec, layer_prefixes(spec, names, NAMES), names)


IGNORED = ("use_sliding_window", "sliding_window", "max_window_layers")
FAMILY = Family(("qwen3_next",), spec, NAMES, more_sources, ignored_keys=IGNORED)
