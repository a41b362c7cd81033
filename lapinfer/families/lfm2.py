"""LFM2: layers of gated short convolutions between layers of attention (transformers/models/lfm2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lapinfer.families.config import LARGEST, Config
from lapinfer.families.decoder import attention_spec, layer_count, model_spec, rope_of, types_of_layers
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import AttentionSpec, ConvolutionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec

MODULES: Mapping[str, tuple[str, ...]] = {
    **LLAMA,
    "norm": ("embedding_norm",),
    "attn_norm": ("operator_norm",),
    "q_norm": ("self_attn.q_layernorm",),
    "k_norm": ("self_attn.k_layernorm",),
    "o": ("self_attn.out_proj",),
    "conv_in": ("conv.in_proj",),
    "conv": ("conv.conv",),
    "conv_out": ("conv.out_proj",),
    "ff_norm": ("ffn_norm",),
    "gate_up": ("feed_forward.w1", "feed_forward.w3"),
    "down": ("feed_forward.w2",),
}
CONVOLUTION, ATTENTION = "conv", "full_attention"
MOST_TAPS = 1024


def spec(config: Config) -> ModelSpec:
    count = layer_count(config)
    return hybrid_model(config, _layer_types(config), [FeedForwardSpec(_width(config), "silu")] * count)


def hybrid_model(config: Config, types: list[str], feed_forwards: list[FeedForwardSpec]) -> ModelSpec:
    """The model with these feed-forwards, one per layer, and for each the type of its layer."""
    config.expect(hidden_act="silu")
    norm = NormSpec("rms", config.number("norm_eps", 1e-5, least=0.0, most=1.0))
    kernel = config.integer("conv_L_cache", 3, most=MOST_TAPS)
    convolution = ConvolutionSpec(kernel, config.flag("conv_bias", False))
    attention = attention_spec(config, rope_of(config, 1e6), qk_norm=norm)
    mixers: dict[str, AttentionSpec | ConvolutionSpec] = {CONVOLUTION: convolution, ATTENTION: attention}
    layers = [LayerSpec(mixers[t], ff, norm, norm) for t, ff in zip(types, feed_forwards, strict=True)]
    model = model_spec(config, layers, norm, tied=True)
    return replace(model, tied=config.flag("tie_embedding", model.tied))  # where both are there, it wins


def _layer_types(config: Config) -> list[str]:
    """`layer_types`; older files name the layers with attention instead (no key: all have it)."""
    count = layer_count(config)
    if "layer_types" not in config:
        named = config.get("full_attn_idxs")
        named = list(range(count)) if named is None else named
        if not isinstance(named, list) or any(type(i) is not int for i in named):
            raise config.wrong("full_attn_idxs", "a list of layer numbers")
        return [ATTENTION if i in named else CONVOLUTION for i in range(count)]
    return layer_types(config)


def layer_types(config: Config) -> list[str]:
    """`layer_types`: which layers have attention, and which a convolution."""
    return types_of_layers(config, "layer_types", (ATTENTION, CONVOLUTION))


def _width(config: Config) -> int:
    """Of the feed-forwards: two thirds of what config.json says, times a factor, to a whole multiple."""
    key = "block_ff_dim" if "block_ff_dim" in config else "intermediate_size"
    width = config.integer(key)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if config.get("block_ffn_dim_multiplier", 1.0) is not None:
        multiple = config.integer("block_multiple_of", 256)
        width = int(config.number("block_ffn_dim_multiplier", 1.0, least=1e-3, most=1e3) * width)
        width = -(-width // multiple) * multiple
    if not 1 <= width <= LARGEST:
        raise config.wrong(key, f"a size that gives feed-forwards of 1 to {LARGEST} columns, not {width}")
    return width


IGNORED = (
    "block_dim", "block_ffn_dim_multiplier", "block_mlp_init_scale", "block_multiple_of", "block_norm_eps",
    "block_out_init_scale", "block_use_swiglu", "block_use_xavier_init", "conv_dim", "conv_dim_out",
    "conv_use_xavier_init", "full_attn_idxs", "intermediate_size", "num_heads", "theta", "use_pos_enc",
)  # fmt: skip
"""Of the program that trained it, or older names beside newer ones."""

FAMILY = Family(("lfm2",), spec, TensorNames(MODULES), ignored_keys=IGNORED)
