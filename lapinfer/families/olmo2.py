"""OLMo 2: norms only after attention and feed-forward, and on whole query and key (transformers/models/olmo2)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part not in ("attn_norm", "ff_norm")} | {
    "attn_post_norm": ("post_attention_layernorm",),
    "ff_post_norm": ("post_feedforward_layernorm",),
}


def spec(config: Config) -> ModelSpec:
    bias, norm = config.flag("attention_bias", False), rms_norm(config, eps=1e-5)
    attention = attention_spec(config, rope_of(config), qkv_bias=bias, o_bias=bias, qk_norm=norm, qk_norm_full=True)
    layer = LayerSpec(attention, feed_forward_spec(config), None, None, norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


FAMILY = Family(("olmo2",), spec, TensorNames(MODULES), gguf=GGUF("olmo2"))
