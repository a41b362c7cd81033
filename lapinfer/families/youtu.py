"""Youtu-LLM: DeepSeek-V3's latent attention with dense feed-forwards (transformers/models/youtu)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, layer_count, model_spec, rms_norm
from lapinfer.families.family import Family
from lapinfer.families.latent import latent_attention, latent_sources
from lapinfer.spec import LayerSpec, ModelSpec

DEFAULTS = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
}  # fmt: skip


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(**DEFAULTS)
    config.refuse("mlp_bias")
    attention = latent_attention(config, config.flag("rope_interleave", True))
    norm = rms_norm(config)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm, tied=True)


IGNORED = ("head_dim", "qk_head_dim", "embedding_initializer_range")
FAMILY = Family(("youtu",), spec, more_sources=latent_sources, ignored_keys=IGNORED)
