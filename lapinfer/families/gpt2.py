"""GPT-2: layer norms, learned positions, biases everywhere, matrices stored [in, out] (transformers/models/gpt2)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import MOST_LAYERS, Config
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import TensorNames
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
    return ModelSpec("", config.integer("vocab_size"), width, layers, norm, positions, tied=tied, positions=positions)


IGNORED = ("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
           "summary_proj_to_labels", "summary_first_dropout")  # fmt: skip


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    return {
        "n_layer": metadata.integer("block_count"),
        "n_positions": metadata.integer("context_length"),
        "n_embd": metadata.integer("embedding_length"),
        "n_inner": metadata.integer("feed_forward_length"),
        "n_head": metadata.integer("attention.head_count"),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


NAMES = TensorNames(MODULES, prefixes=("transformer.", ""), layers="h", transposed=True)
FAMILY = Family(("gpt2",), spec, NAMES, gguf=GGUF("gpt2", gguf_config, layers="n_layer"), ignored_keys=IGNORED)
