"""GLM-4.5: DeepSeek-V3's experts, half of each head turns, norms on heads as asked (transformers/models/glm4_moe)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, layer_count, rms_norm, rope_of
from lapinfer.families.deepseek_v2 import deepseek_model, sparse_after
from lapinfer.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from lapinfer.families.experts import sigmoid_router
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(rms_norm_eps=1e-5, num_key_value_heads=8)
    attention = attention_spec(
        config,
        rope_of(config, partial=0.5),
        qkv_bias=config.flag("attention_bias", False),
        qk_norm=rms_norm(config) if config.flag("use_qk_norm", False) else None,
    )
    router = sigmoid_router(config, normalise=True, scale=1.0, groups=(1, 1))
    return deepseek_model(config, [attention] * layer_count(config), router, sparse_after(config, 1), shared=1)


IGNORED = ("intermediate_size", "topk_method", "num_nextn_predict_layers", "num_mtp_layers")
FAMILY = replace(DEEPSEEK_V3, model_types=("glm4_moe",), spec=spec, more_sources=None, ignored_keys=IGNORED)
