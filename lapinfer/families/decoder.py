"""What the Llama-shaped families share: the usual keys of a config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.rope import LAYER_TYPES, rope_section, rope_sections_by_layer_type, rope_spec
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec


def layer_count(config: Config) -> int:
    return config.integer("num_hidden_layers", most=MOST_LAYERS)


def head_dim(config: Config) -> int:
    """`head_dim`, or the width divided by the number of heads."""
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads", most=4096)
    if "head_dim" not in config and width % heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads, {heads}")
    return config.integer("head_dim", width // heads, most=4096)


def context(config: Config) -> int:
    return config.integer("max_position_embeddings", most=1 << 30)


def rope_of(
    config: Config, theta: float = 10_000.0, *, partial: float | None = None, interleaved: bool = False
) -> RopeSpec:
    """Rotary positions, the same in every layer; `theta` is the family's default base.

    partial: the family's default share of a head that turns, where it may be less than all.
    """
    section = rope_section(config, theta)
    if partial is not None:
        section = section.with_defaults(partial_rotary_factor=partial)
    rope = rope_spec(section, head_dim(config), context(config), partial=partial is not None)
    return replace(rope, interleaved=interleaved)


def ropes_by_layer_type(config: Config, theta: float = 1e6, sliding_theta: float = 1e4) -> tuple[RopeSpec, RopeSpec]:
    """Rotary positions of full and of sliding layers; theta, sliding_theta: the family's default bases."""
    full, sliding = (
        rope_spec(section, head_dim(config), context(config))
        for section in rope_sections_by_layer_type(config, theta, sliding_theta)
    )
    return full, sliding


def attention_spec(
    config: Config,
    rope: RopeSpec | None,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: NormSpec | None = None,
    qk_norm_full: bool = False,
    clip: float | None = None,
    sinks: bool = False,
    gated: bool = False,
) -> AttentionSpec:
    """Attention with the usual keys for heads; `scale` is 1/sqrt(head_dim) unless told."""
    heads, dim = config.integer("num_attention_heads", most=4096), head_dim(config)
    kv_heads = config.integer("num_key_value_heads", heads, most=4096)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    scale = 1 / math.sqrt(dim) if scale is None else scale
    return AttentionSpec(
        heads, kv_heads, dim, dim, scale, rope, window, softcap, qkv_bias, o_bias, qk_norm, qk_norm_full, clip, sinks,
        gated=gated,
    )  # fmt: skip


def feed_forward_spec(config: Config, activation: str = "hidden_act", bias: bool = False) -> FeedForwardSpec:
    return FeedForwardSpec(config.integer("intermediate_size"), config.activation(activation), bias=bias)


def ungated_feed_forward(config: Config, activation: str, bias: bool = True) -> FeedForwardSpec:
    """Two matrices with an activation between; `activation` is the family's default."""
    return FeedForwardSpec(
        config.integer("intermediate_size"), config.activation(default=activation), gated=False, bias=bias
    )


def rms_norm(config: Config, eps: float = 1e-6, offset: float = 0.0) -> NormSpec:
    return NormSpec("rms", config.number("rms_norm_eps", eps, least=0.0, most=1.0), offset)


def layer_norm(config: Config, key: str = "layer_norm_eps", bias: bool = True) -> NormSpec:
    return NormSpec("layer", config.number(key, 1e-5, least=0.0, most=1.0), bias=bias)


def window_size(config: Config, default: int | None = 4096) -> int | None:
    """`sliding_window`: null means none, and only an absent key means the family's default."""
    if config.get("sliding_window", default) is None:
        return None
    return config.integer("sliding_window", default or 1, most=1 << 30)


def window_in_use(config: Config, default: int | None = 4096) -> int | None:
    """`sliding_window` where `use_sliding_window` is on."""
    return window_size(config, default) if config.flag("use_sliding_window", False) else None


def soft_cap(config: Config, key: str, default: float | None) -> float | None:
    """A soft cap: null means none, and only an absent key means the family's default."""
    return None if config.get(key, default) is None else config.number(key, default or 1.0, least=1e-3)


def embed_scale(config: Config) -> float:
    """Gemma's sqrt(hidden_size), rounded as transformers rounds it: to the number type of the stored weights."""
    scale = np.float32(math.sqrt(config.integer("hidden_size")))
    dtype = config.text("dtype", config.text("torch_dtype", "float32"))
    if dtype == "float16":
        scale = np.float16(scale)
    elif dtype == "bfloat16":  # the upper half of a float32, rounded to nearest even
        bits = scale.view(np.uint32)
        scale = np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return float(scale)


def types_of_layers(config: Config, key: str, known: Collection[str]) -> list[str]:
    """A list of `known` names, one for each layer."""
    count, types = layer_count(config), config.get(key)
    if not isinstance(types, list) or len(types) != count:
        raise config.wrong(key, f"a list of {count} names, one per layer")
    if any(t not in known for t in types):
        raise config.unsupported(key, ", ".join(known))
    return types


def windows(config: Config, sliding: Iterable[bool], window: int | None) -> list[int | None]:
    """The window of each layer: `layer_types` where config.json has it, else `sliding` says which layers slide."""
    if "layer_types" in config:
        sliding = [t == "sliding_attention" for t in types_of_layers(config, "layer_types", LAYER_TYPES)]
    slides = list(sliding)
    if any(slides) and window is None:
        raise config.wrong("sliding_window", "an integer, because layers slide")
    return [window if s else None for s in slides]


def model_spec(
    config: Config,
    layers: Iterable[LayerSpec],
    norm: NormSpec,
    *,
    tied: bool = False,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    head_bias: bool = False,
) -> ModelSpec:
    """A ModelSpec with the usual keys for sizes, and no family's name; `tied` is the family's default."""
    return ModelSpec(
        "",
        config.integer("vocab_size"),
        config.integer("hidden_size"),
        tuple(layers),
        norm,
        context(config),
        tied=config.flag("tie_word_embeddings", tied),
        embed_scale=embed_scale,
        head_bias=head_bias,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
    )
