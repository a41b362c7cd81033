"""GPT-NeoX and Pythia: layer norms, biases, a part of each head turns, both halves side by side
(transformers/models/gpt_neox).

Rows of queries, keys and values are stored head by head.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    layer_count,
    layer_norm,
    model_spec,
    rope_of,
    ungated_feed_forward,
)
from lapinfer.families.experts import most_parts
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, biased, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {
    "embed": ("embed_in",),
    "norm": ("final_layer_norm",),
    "attn_norm": ("input_layernorm",),
    "qkv": ("attention.query_key_value",),
    "o": ("attention.dense",),
    "ff_norm": ("post_attention_layernorm",),
    "up": ("mlp.dense_h_to_4h",),
    "down": ("mlp.dense_4h_to_h",),
}
NAMES = TensorNames(MODULES, prefixes=("gpt_neox.", ""), head_modules=("embed_out", "lm_head"))


def spec(config: Config) -> ModelSpec:
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads", most=most_parts(config))
    config.expect(num_key_value_heads=heads, head_dim=width // heads)
    theta = config.number("rotary_emb_base", 1e4)
    if "rotary_emb_base" in config:
        config.expect(rope_theta=theta)
    rope = rope_of(config, theta, partial=config.number("rotary_pct", 0.25, most=1.0))
    bias, norm = config.flag("attention_bias", True), layer_norm(config)
    layer = LayerSpec(
        attention_spec(config, rope, qkv_bias=bias, o_bias=bias),
        ungated_feed_forward(config, "gelu"),
        norm,
        norm,
        parallel=config.flag("use_parallel_residual", True),
    )
    return model_spec(config, [layer] * layer_count(config), norm)


def qkv_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """A head's queries, keys and values lie together."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names, NAMES):
        attention = spec.layers[i].attention
        assert attention is not None
        dim, heads = attention.k_dim, range(attention.n_heads)
        firsts = [(3 * head + part) * dim for part in range(3) for head in heads]
        for suffix in ("weight", "bias") if attention.qkv_bias else ("weight",):
            stored, ours = f"{prefix}attention.query_key_value.{suffix}", "qkv" if suffix == "weight" else "qkv.bias"
            sources[f"layers.{i}.{ours}"] = tuple(Source(stored, first, first + dim) for first in firsts)
    return sources


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = {"partial_rotary_factor": 1.0} | decoder_config(metadata, partial_rotary=True, layer_norm="layer_norm_eps")
    return config | {
        "hidden_act": "gelu",
        "attention_bias": biased(metadata, "attn_qkv", "attn_output"),
        "use_parallel_residual": metadata.get("use_parallel_residual") is not False,
    }


GGUF_FILES = GGUF("gptneox", gguf_config, regrouped=True)
FAMILY = Family(("gpt_neox",), spec, NAMES, qkv_sources, GGUF_FILES)
