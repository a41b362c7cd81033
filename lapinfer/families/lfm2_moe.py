"""LFM2 with experts in all but the first layers (transformers/models/lfm2_moe)."""

from __future__ import annotations

from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.decoder import layer_count
from lapinfer.families.experts import router_spec
from lapinfer.families.family import Family
from lapinfer.families.lfm2 import MODULES, hybrid_model, layer_types
from lapinfer.families.names import LFM2, TensorNames
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
    feed_forwards = [dense if i < first else experts for i in range(layer_count(config))]
    return hybrid_model(config, layer_types(config), feed_forwards)


NAMES = TensorNames(MODULES, experts=LFM2, selection_bias="feed_forward.expert_bias")
FAMILY = Family(("lfm2_moe",), spec, NAMES, ignored_keys=("full_attn_idxs", "rms_norm_eps"))
