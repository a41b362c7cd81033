"""DeepSeek's latent attention: config keys, and names of stored tensors (transformers/models/deepseek_v2)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import context
from lapinfer.families.experts import most_parts
from lapinfer.families.names import Source, Sources, layer_prefixes
from lapinfer.families.rope import rope_kind, rope_section, rope_spec
from lapinfer.quant import GROUP
from lapinfer.spec import AttentionSpec, LatentSpec, ModelSpec, NormSpec

NORM = NormSpec("rms", 1e-6)
"""Of latents: they don't use the config's `rms_norm_eps`."""


def latent_attention(config: Config, interleaved: bool = True) -> AttentionSpec:
    heads = config.integer("num_attention_heads", most=most_parts(config))
    if config.integer("num_key_value_heads", heads, most=4096) != heads:
        raise config.unsupported("num_key_value_heads", f"num_attention_heads, {heads}, in this family")
    rank, nope, rotated, v_dim = (
        config.integer(key, most=1 << 16)
        for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    for key, value in (("kv_lora_rank", rank), ("v_head_dim", v_dim)):
        if value % GROUP:  # they become groups of activations, head by head
            raise config.unsupported(key, f"multiples of {GROUP}")
    q_rank = 0  # null says that there is none
    if config.get("q_lora_rank", 0) is not None:
        q_rank = config.integer("q_lora_rank", 1536)
    section = rope_section(config)
    rope = replace(rope_spec(section, rotated, context(config)), interleaved=interleaved)
    scale = (nope + rotated) ** -0.5
    if rope_kind(section) != "default" and section.get("mscale_all_dim"):
        factor, m = section.number("factor", 1.0, least=1e-3, most=1e6), section.number("mscale_all_dim", most=1e3)
        scale *= (0.1 * m * math.log(factor) + 1) ** 2 if factor > 1 else 1.0
    bias = config.flag("attention_bias", False)
    latent = LatentSpec(rank, nope, v_dim, NORM, q_rank)
    return AttentionSpec(heads, 1, rank + rotated, rank, scale, rope, qkv_bias=bias, o_bias=bias, latent=latent)


def latent_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """Sources of what no table of modules says, of all layers."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names):
        attention, p, stored = spec.layers[i].attention, f"layers.{i}.", f"{prefix}self_attn."
        assert attention is not None
        latent = attention.latent
        assert latent is not None
        q = f"{stored}{'q_a_proj' if latent.q_rank else 'q_proj'}"
        kv = f"{stored}kv_a_proj_with_mqa"
        sources[p + "qkv"] = (Source(f"{q}.weight"), Source(f"{kv}.weight"))
        if attention.qkv_bias:  # q_proj never has one
            q_bias = Source(f"{q}.bias") if latent.q_rank else Source("", stop=attention.q_rows)
            sources[p + "qkv.bias"] = (q_bias, Source(f"{kv}.bias"))
        if latent.q_rank:
            sources[p + "q_a_norm.weight"] = (Source(f"{stored}q_a_layernorm.weight"),)
            sources[p + "q_b"] = (Source(f"{stored}q_b_proj.weight"),)
        sources[p + "kv_norm.weight"] = (Source(f"{stored}kv_a_layernorm.weight"),)
        both, nope, head = f"{stored}kv_b_proj.weight", latent.nope, latent.nope + latent.v_dim
        firsts = range(0, attention.n_heads * head, head)  # a head's key rows come first, then its value rows
        sources[p + "k_up"] = tuple(Source(both, transposed=True, columns=(h, h + nope)) for h in firsts)
        sources[p + "v_up"] = tuple(Source(both, h + nope, h + head) for h in firsts)
    return sources
