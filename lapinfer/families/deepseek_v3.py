"""DeepSeek-V3: V2 with sigmoid scores and a bias that only selects (transformers/models/deepseek_v3)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.deepseek_v2 import FAMILY as DEEPSEEK_V2
from lapinfer.families.deepseek_v2 import deepseek_model, grouped
from lapinfer.families.experts import router_spec
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
    return deepseek_model(config, router, dense=3, shared=1, interleaved=interleaved)


NAMES = replace(DEEPSEEK_V2.names, selection_bias="mlp.gate.e_score_correction_bias")
FAMILY = replace(DEEPSEEK_V2, model_types=("deepseek_v3",), spec=spec, names=NAMES)
