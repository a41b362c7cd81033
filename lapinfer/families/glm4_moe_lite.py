"""GLM-4.7-Flash: DeepSeek-V3 with a type for each layer's feed-forward (transformers/models/glm4_moe_lite)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count
from lapinfer.families.deepseek_v2 import deepseek_model
from lapinfer.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from lapinfer.families.experts import sigmoid_router, sparse_by_type
from lapinfer.families.latent import latent_attention
from lapinfer.spec import ModelSpec

DEFAULTS = {
    "kv_lora_rank": 512, "q_lora_rank": 768, "qk_rope_head_dim": 64, "v_head_dim": 256, "qk_nope_head_dim": 192,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(**DEFAULTS)
    count = layer_count(config)
    if "mlp_layer_types" not in config:
        config.expect(first_k_dense_replace=1)
    attention = latent_attention(config, config.flag("rope_interleave", True))
    router = sigmoid_router(config, normalise=True, scale=1.8, groups=(1, 1))
    sparse = sparse_by_type(config, [i > 0 for i in range(count)])
    return deepseek_model(config, [attention] * count, router, sparse, shared=1)


IGNORED = (*DEEPSEEK_V3.ignored_keys, "first_k_dense_replace", "num_mtp_layers")
FAMILY = replace(DEEPSEEK_V3, model_types=("glm4_moe_lite",), spec=spec, ignored_keys=IGNORED)
