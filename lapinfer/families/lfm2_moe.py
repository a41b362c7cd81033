"""LFM2 with experts in all but the first layers (transformers/models/lfm2_moe)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.decoder import layer_count
from lapinfer.families.experts import LFM2, expert_sources, router_spec, selection_bias_sources
from lapinfer.families.lfm2 import MODULES, hybrid_model
from lapinfer.spec import FeedForwardSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    router = router_spec(
        config,
        "num_experts",
        score="sigmoid",
        normalise=config.flag("norm_topk_prob", True),
        eps=1e-6,
        scale=config.number("routed_scaling_factor", 1.0, most=1e6),
        selection_bias=config.flag("use_expert_bias", True),
    )
    experts = FeedForwardSpec(config.integer("moe_intermediate_size"), "silu", router=router)
    dense = FeedForwardSpec(config.integer("intermediate_size"), "silu")
    first = config.integer("num_dense_layers", 2, least=0, most=MOST_LAYERS)
    return hybrid_model(config, "lfm2_moe", [dense if i < first else experts for i in range(layer_count(config))])


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    found = expert_sources(spec, names, LFM2, MODULES)
    return found | selection_bias_sources(spec, names, "feed_forward.expert_bias")
