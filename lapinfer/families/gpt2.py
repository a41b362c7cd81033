"""GPT-2: layer norms, learned positions, biases everywhere, matrices stored [in, out] (transformers/models/gpt2)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source
from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.decoder import named_sources
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec

MODULES = {
    "embed": ("wte",),
    "positions": ("wpe",),
    "norm": ("ln_f",),
    "attn_norm": ("ln_1",),
    "qkv": ("attn.c_attn",),
    "o": ("attn.c_proj",),
    "ff_norm": ("ln_2",),
    "up": ("mlp.c_fc",),
    "down": ("mlp.c_proj",),
}


def spec(config: Config) -> ModelSpec:
    width, heads = config.integer("n_embd"), config.integer("n_head", most=4096)
    if width % heads:
        raise config.wrong("n_embd", f"a multiple of n_head, {heads}")
    dim, positions = width // heads, config.integer("n_positions")
    scale = dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    norm = NormSpec("layer", config.number("layer_norm_epsilon", 1e-5, least=0.0, most=1.0), bias=True)
    activation = config.activation("activation_function", "gelu_new")
    feed_forward = FeedForwardSpec(config.integer("n_inner", 4 * width), activation, gated=False, bias=True)
    layers = tuple(
        LayerSpec(
            AttentionSpec(heads, heads, dim, dim, scale / (i + 1 if by_layer else 1), qkv_bias=True, o_bias=True),
            feed_forward,
            norm,
            norm,
        )
        for i in range(config.integer("n_layer", most=MOST_LAYERS))
    )
    tied = config.flag("tie_word_embeddings", True)
    return ModelSpec(
        "gpt2", config.integer("vocab_size"), width, layers, norm, positions, tied=tied, positions=positions
    )


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return named_sources(spec, names, MODULES, prefixes=("transformer.", ""), layers="h", transposed=True)
