"""DeepSeek-V3: V2 with sigmoid scores and a bias that only selects (transformers/models/deepseek_v3)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import Config
from lapinfer.families.deepseek_v2 import deepseek_model, grouped
from lapinfer.families.deepseek_v2 import sources as v2_sources
from lapinfer.families.experts import router_spec, selection_bias_sources
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    router = router_spec(
        config,
        "n_routed_experts",
        score="sigmoid",
        normalise=config.flag("norm_topk_prob", True),
        eps=1e-20,
        scale=config.number("routed_scaling_factor", 2.5, most=1e6),
        selection_bias=True,
        group_best=2,
    )
    router = grouped(config.with_defaults(n_group=8, topk_group=4), router)
    interleaved = config.flag("rope_interleave", True)
    return deepseek_model(config, "deepseek_v3", router, dense=3, shared=1, interleaved=interleaved)


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return v2_sources(spec, names) | selection_bias_sources(spec, names, "mlp.gate.e_score_correction_bias")
