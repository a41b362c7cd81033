"""gpt-oss: attention sinks, every other layer slides, experts with biases (transformers/models/gpt_oss).

Gate and up rows alternate. Experts are stored as floats [E, in, out], or as MXFP4 blocks [E, out, in].
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    window_size,
    windows,
)
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import LayerSpec, ModelSpec

YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""Rope parameters of a config.json that has none."""


def spec(config: Config) -> ModelSpec:
    config.expect(swiglu_alpha=1.702, swiglu_limit=7.0)
    if "rope_scaling" not in config and "rope_parameters" not in config:
        config = config.with_defaults(rope_parameters=YARN)
    config = config.with_defaults(head_dim=64)
    bias, norm = config.flag("attention_bias", True), rms_norm(config, eps=1e-5)
    router = router_spec(config, "num_local_experts", score="logits", bias=True)
    experts = replace(routed_feed_forward(config, router, "intermediate_size"), activation="swiglu_oai", bias=True)
    rope, window = rope_of(config, 150_000.0), window_size(config, 128)
    slides = [i % 2 == 0 for i in range(layer_count(config))]
    layers = [
        LayerSpec(attention_spec(config, rope, window=w, qkv_bias=bias, o_bias=bias, sinks=True), experts, norm, norm)
        for w in windows(config, slides, window)
    ]
    return model_spec(config, layers, norm)


def sources_of_experts(spec: ModelSpec, names: Collection[str]) -> Sources:
    """Of experts and sinks of attention."""
    sources: Sources = {}
    for i, prefix in layer_prefixes(spec, names):
        p, stored = f"layers.{i}.", f"{prefix}mlp.experts."
        floats = f"{stored}gate_up_proj" in names
        end = "" if floats else "_blocks"
        experts = range(spec.layers[i].feed_forward.experts)
        sources[p + "sinks"] = (Source(f"{prefix}self_attn.sinks"),)
        both = [(e, first) for e in experts for first in (0, 1)]
        sources[p + "experts.gate_up"] = tuple(
            Source(f"{stored}gate_up_proj{end}", first, transposed=floats, step=2, index=e) for e, first in both
        )
        sources[p + "experts.gate_up.bias"] = tuple(
            Source(f"{stored}gate_up_proj_bias", first, step=2, index=e) for e, first in both
        )
        sources[p + "experts.down"] = tuple(
            Source(f"{stored}down_proj{end}", transposed=floats, index=e) for e in experts
        )
        sources[p + "experts.down.bias"] = tuple(Source(f"{stored}down_proj_bias", index=e) for e in experts)
    return sources


IGNORED = ("hidden_act", "experts_per_token", "initial_context_length")
NAMES = TensorNames({**LLAMA, "router": ("mlp.router",)})
FAMILY = Family(("gpt_oss",), spec, NAMES, sources_of_experts, quant_method="mxfp4", ignored_keys=IGNORED)
