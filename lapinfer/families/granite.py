"""Granite 3: Llama with a multiplier on embedding, attention, residual and logits (transformers/models/granite)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, projection_biases
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, Mixer, ModelSpec, RopeSpec


def spec(config: Config) -> ModelSpec:
    return granite_model(config, feed_forward_spec(config, bias=config.flag("mlp_bias", False)))


def granite_model(config: Config, feed_forward: FeedForwardSpec, mixers: Iterable[Mixer] | None = None) -> ModelSpec:
    """The multipliers and all else that Granite has around a feed-forward. mixers: of layers, if they differ."""
    config.expect(normalization_function="rmsnorm")
    norm, scale = rms_norm(config), config.number("residual_multiplier", 1.0)
    if mixers is None:
        mixers = [granite_attention(config, rope_of(config))] * layer_count(config)
    return model_spec(
        config,
        [LayerSpec(mixer, feed_forward, norm, norm, residual_scale=scale) for mixer in mixers],
        norm,
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


def granite_attention(
    config: Config, rope: RopeSpec | None, *, window: int | None = None, sinks: bool = False
) -> AttentionSpec:
    if rope is not None:
        config.expect(position_embedding_type="rope")
    bias, scale = config.flag("attention_bias", False), config.number("attention_multiplier", 1.0)
    return attention_spec(config, rope, window=window, scale=scale, qkv_bias=bias, o_bias=bias, sinks=sinks)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, rope_freqs=True)
    if metadata.get("rope.scaling.finetuned") is False:  # llama.cpp's switch for Granites without rotary positions
        raise metadata.unsupported("granite.rope.scaling.finetuned is false: a Granite without rotary positions")
    usual = max(config["head_dim"], 1) ** -0.5  # heads of no width are refused with the config
    return (
        config
        | projection_biases(metadata)
        | {
            "attention_multiplier": metadata.number("attention.scale", 0.0) or usual,
            "embedding_multiplier": metadata.number("embedding_scale", 0.0) or 1.0,
            "residual_multiplier": metadata.number("residual_scale", 0.0) or 1.0,
            "logits_scaling": metadata.number("logit_scale"),
        }
    )


FAMILY = Family(("granite",), spec, gguf=GGUF("granite", gguf_config, permuted=True))
