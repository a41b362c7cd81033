"""StarCoder 2: layer norms, biases, feed-forwards without a gate, a window (transformers/models/starcoder2)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    layer_count,
    layer_norm,
    model_spec,
    rope_of,
    ungated_feed_forward,
    window_size,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, biased, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part not in ("gate_up", "q_norm", "k_norm")} | {
    "up": ("mlp.c_fc",),
    "down": ("mlp.c_proj",),
}


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(num_key_value_heads=2)
    config.expect(norm_type="layer_norm", mlp_type="default", scale_attn_weights=True)
    bias, norm = config.flag("use_bias", True), layer_norm(config, "norm_epsilon")
    attention = attention_spec(config, rope_of(config), window=window_size(config, None), qkv_bias=bias, o_bias=bias)
    layer = LayerSpec(attention, ungated_feed_forward(config, "gelu_pytorch_tanh", bias), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm, tied=True)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    projections = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    config = decoder_config(metadata, windows=True, rope_freqs=True, layer_norm="norm_epsilon")
    return config | {"hidden_act": "gelu_pytorch_tanh", "use_bias": biased(metadata, *projections)}


IGNORED = ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "layer_norm_epsilon")
GGUF_FILES = GGUF("starcoder2", gguf_config)
FAMILY = Family(("starcoder2",), spec, TensorNames(MODULES), gguf=GGUF_FILES, ignored_keys=IGNORED)
