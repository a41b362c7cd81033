"""What the Llama-shaped families share: the usual config keys, and the usual names of stored tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from lapinfer.families import Source
from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.rope import rope_section, rope_spec
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec
from lapinfer.tensors import is_matrix, tensors

MODULES: Mapping[str, tuple[str, ...]] = {
    "embed": ("embed_tokens",),
    "norm": ("norm",),
    "attn_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "o": ("self_attn.o_proj",),
    "ff_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "up": ("mlp.up_proj",),
    "down": ("mlp.down_proj",),
}
"""Our name of a part -> the modules whose rows it is made of, as Llama calls them."""

PREFIXES: Sequence[str] = ("model.", "")
"""What published names of the decoder's tensors begin with; the usual one is first."""


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


def rope_of(config: Config, theta: float = 10_000.0) -> RopeSpec:
    """Rotary positions on whole heads, the same in every layer; `theta` is the family's default base."""
    return rope_spec(rope_section(config, theta), head_dim(config), context(config))


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
) -> AttentionSpec:
    """Attention with the usual keys for heads; `scale` is 1/sqrt(head_dim) unless told."""
    heads, dim = config.integer("num_attention_heads", most=4096), head_dim(config)
    kv_heads = config.integer("num_key_value_heads", heads, most=4096)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    scale = 1 / math.sqrt(dim) if scale is None else scale
    return AttentionSpec(
        heads, kv_heads, dim, dim, scale, rope, window, softcap, qkv_bias, o_bias, qk_norm, qk_norm_full, clip, sinks
    )


def feed_forward_spec(config: Config, activation: str = "hidden_act", bias: bool = False) -> FeedForwardSpec:
    return FeedForwardSpec(config.integer("intermediate_size"), config.activation(activation), bias=bias)


def rms_norm(config: Config, eps: float = 1e-6, offset: float = 0.0) -> NormSpec:
    return NormSpec("rms", config.number("rms_norm_eps", eps, least=0.0, most=1.0), offset)


def window_size(config: Config, default: int | None = 4096) -> int | None:
    """`sliding_window`: null means none, and only an absent key means the family's default."""
    if config.values.get("sliding_window", default) is None:
        return None
    return config.integer("sliding_window", default or 1, most=1 << 30)


def soft_cap(config: Config, key: str, default: float | None) -> float | None:
    """A soft cap: null means none, and only an absent key means the family's default."""
    return None if config.values.get(key, default) is None else config.number(key, default or 1.0, least=1e-3)


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


def windows(config: Config, sliding: Iterable[bool], window: int | None) -> list[int | None]:
    """The window of each layer: `layer_types` where config.json has it, else `sliding` says which layers slide."""
    count = layer_count(config)
    if "layer_types" in config:
        types = config.values["layer_types"]
        if not isinstance(types, list) or len(types) != count:
            raise config.wrong("layer_types", f"a list of {count} names, one a layer")
        if any(t not in ("full_attention", "sliding_attention") for t in types):
            raise config.unsupported("layer_types", "full_attention, sliding_attention")
        sliding = [t == "sliding_attention" for t in types]
    slides = list(sliding)
    if any(slides) and window is None:
        raise config.wrong("sliding_window", "an integer, because layers slide")
    return [window if s else None for s in slides]


def model_spec(
    config: Config,
    family: str,
    layers: Iterable[LayerSpec],
    norm: NormSpec,
    *,
    tied: bool = False,
    embed_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    head_bias: bool = False,
) -> ModelSpec:
    """A ModelSpec with the usual keys for sizes; `tied` is the family's default."""
    return ModelSpec(
        family,
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


def first_stored(names: Collection[str], prefixes: Iterable[str], module: str) -> str:
    """The first prefix under which `module` is stored; the usual one, the first, when none is."""
    usual, *others = prefixes
    return next((p for p in (usual, *others) if f"{p}{module}.weight" in names), usual)


def named_sources(
    spec: ModelSpec,
    names: Collection[str],
    modules: Mapping[str, tuple[str, ...]] = MODULES,
    *,
    prefixes: Iterable[str] = PREFIXES,
    heads: Iterable[str] = ("",),
    layers: str = "layers",
    transposed: bool = False,
) -> dict[str, tuple[Source, ...]]:
    """Sources by a table of modules. `prefixes` of the decoder and `heads` of lm_head: what published files use.

    `transposed`: matrices of layers are stored [in, out]. Parts of layers that the table leaves out are left out.
    """
    prefix = first_stored(names, prefixes, modules["embed"][0])
    head = first_stored(names, heads, "lm_head") + "lm_head"
    found: dict[str, tuple[Source, ...]] = {}
    for name in tensors(spec):
        part, _, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            part, suffix = name, "weight"
        if part == "head":
            found[name] = (Source(f"{head}.{suffix}"),)
            continue
        outer = prefix
        if part.startswith("layers."):
            _, index, part = part.split(".", 2)
            if part not in modules:
                continue
            outer = f"{prefix}{layers}.{index}."
        flip = transposed and is_matrix(name) and name.startswith("layers.")
        found[name] = tuple(Source(f"{outer}{module}.{suffix}", transposed=flip) for module in modules[part])
    return found
