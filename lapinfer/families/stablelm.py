"""StableLM: Llama with layer norms, a quarter of each head turns, norms of each head (transformers/models/stablelm)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    layer_norm,
    model_spec,
    rope_of,
)
from lapinfer.families.experts import most_parts
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, biased, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part not in ("q_norm", "k_norm")}


def spec(config: Config) -> ModelSpec:
    config = config.with_absent(num_key_value_heads=32)
    heads = config.integer("num_attention_heads", most=most_parts(config))
    config.expect(head_dim=config.integer("hidden_size") // heads)
    norm = layer_norm(config)
    attention = attention_spec(config, rope_of(config, partial=0.25), qkv_bias=config.flag("use_qkv_bias", False))
    if config.flag("qk_layernorm", False):
        attention = replace(attention, qk_norm=layer_norm(config, bias=False), qk_norm_each=True)
    parallel = config.flag("use_parallel_residual", False)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, None if parallel else norm, parallel=parallel)
    return model_spec(config, [layer] * layer_count(config), norm)


def norm_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """Norms of heads, which are stored one by one."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names):
        attention = spec.layers[i].attention
        assert attention is not None
        if attention.qk_norm is not None:
            for which, heads in (("q", attention.n_heads), ("k", attention.n_kv_heads)):
                stored = f"{prefix}self_attn.{which}_layernorm.norms"
                sources[f"layers.{i}.{which}_norm.weight"] = tuple(Source(f"{stored}.{h}.weight") for h in range(heads))
    return sources


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = {"partial_rotary_factor": 1.0} | decoder_config(metadata, partial_rotary=True, layer_norm="layer_norm_eps")
    metadata.get("use_parallel_residual")  # llama.cpp goes by whether there is a second norm
    return config | {
        "use_qkv_bias": biased(metadata, "attn_q", "attn_k", "attn_v"),
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in metadata.tensors,
    }


FAMILY = Family(("stablelm",), spec, TensorNames(MODULES), norm_sources, GGUF("stablelm", gguf_config))
