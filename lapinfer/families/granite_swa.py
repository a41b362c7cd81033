"""Granite with windows, attention sinks and a rotary base for each layer (transformers/models/granite_swa)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families.config import Config
from lapinfer.families.decoder import context, feed_forward_spec, head_dim, layer_count, window_size, windows
from lapinfer.families.family import Family
from lapinfer.families.granite import granite_attention, granite_model
from lapinfer.families.names import Source, Sources, layer_prefixes
from lapinfer.families.rope import rope_section, rope_spec
from lapinfer.spec import AttentionSpec, ModelSpec, RopeSpec


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(num_key_value_heads=4, rms_norm_eps=1e-5, tie_word_embeddings=True)
    feed_forward = feed_forward_spec(config, bias=config.flag("mlp_bias", False))
    return granite_model(config, feed_forward, sliding_attentions(config))


def sliding_attentions(config: Config) -> list[AttentionSpec]:
    """Of all layers: every fourth, from the first on, sees everything."""
    slides = [i % 4 != 0 for i in range(layer_count(config))]
    return [
        granite_attention(config, rope, window=window, sinks=True)
        for rope, window in zip(_ropes(config), windows(config, slides, window_size(config, 128)), strict=True)
    ]


def _ropes(config: Config) -> list[RopeSpec | None]:
    """Rotary positions of each layer by its own base; 0: none."""
    count, section = layer_count(config), rope_section(config)
    if "layer_rope_theta" not in config:
        return [rope_spec(section, head_dim(config), context(config))] * count
    bases = config.get("layer_rope_theta")
    if not isinstance(bases, list) or len(bases) != count:
        raise config.wrong("layer_rope_theta", f"a list of {count} numbers, one per layer")
    return [
        rope_spec(section.replaced(rope_theta=base), head_dim(config), context(config)) if base != 0 else None
        for base in bases
    ]


def sink_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    return {f"layers.{i}.sinks": (Source(f"{at}self_attn.sinks"),) for i, at in layer_prefixes(spec, names)}


FAMILY = Family(("granite_swa",), spec, more_sources=sink_sources)
