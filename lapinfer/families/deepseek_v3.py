"""DeepSeek-V3: V2 with sigmoid scores and a bias that only selects (transformers/models/deepseek_v3)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count
from lapinfer.families.deepseek_v2 import FAMILY as DEEPSEEK_V2
from lapinfer.families.deepseek_v2 import deepseek_model, sparse_after
from lapinfer.families.experts import sigmoid_router
from lapinfer.families.latent import latent_attention
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    router = sigmoid_router(config, normalise=True, scale=2.5, groups=(8, 4))
    attention = latent_attention(config, config.flag("rope_interleave", True))
    return deepseek_model(config, [attention] * layer_count(config), router, sparse_after(config, 3), shared=1)


NAMES = replace(DEEPSEEK_V2.names, selection_bias="mlp.gate.e_score_correction_bias")
FAMILY = replace(DEEPSEEK_V2, model_types=("deepseek_v3",), spec=spec, names=NAMES)
