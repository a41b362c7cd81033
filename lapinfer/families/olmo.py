"""OLMo, the first: Llama with layer norms that have no weights, and clipped projections (transformers/models/olmo)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec, NormSpec

MODULES = {part: modules for part, modules in LLAMA.items() if "norm" not in part}
EPS = 1e-5


def spec(config: Config) -> ModelSpec:
    bias, norm = config.flag("attention_bias", False), NormSpec("layer", EPS, weight=False)
    attention = attention_spec(config, rope_of(config), qkv_bias=bias, o_bias=bias, clip=clip_qkv(config))
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def clip_qkv(config: Config) -> float | None:
    """What queries, keys and values are cut to; null means that they are not."""
    return config.number("clip_qkv", least=1e-6) if "clip_qkv" in config else None


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, layer_norm="eps")
    if config.pop("eps") != EPS:
        raise metadata.unsupported(f"olmo.attention.layer_norm_epsilon is not {EPS}")
    return config | {"clip_qkv": metadata.number("attention.clamp_kqv", 0.0) or None}


FAMILY = Family(("olmo",), spec, TensorNames(MODULES), gguf=GGUF("olmo", gguf_config, permuted=True))
