"""Apertus: norms on heads, feed-forwards without a gate whose activation is learned (transformers/models/apertus)."""

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
    ungated_feed_forward,
)
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, Source, Sources, TensorNames, layer_prefixes
from lapinfer.spec import FeedForwardSpec, LayerSpec, ModelSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part != "gate_up"} | {
    "attn_norm": ("attention_layernorm",),
    "ff_norm": ("feedforward_layernorm",),
    "up": ("mlp.up_proj",),
}
ROPE = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
"""Rope parameters of a config.json that has none."""


def spec(config: Config) -> ModelSpec:
    config.refuse("mlp_bias", "post_norm")
    config.expect(qk_norm=True)
    if "rope_scaling" not in config and "rope_parameters" not in config:
        config = config.with_defaults(rope_parameters=ROPE)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, eps=1e-5)
    attention = attention_spec(config, rope_of(config, 12e6), qkv_bias=bias, o_bias=bias, qk_norm=norm)
    layer = LayerSpec(attention, _feed_forward(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def _feed_forward(config: Config) -> FeedForwardSpec:
    if config.text("hidden_act", "xielu") == "xielu":
        return replace(ungated_feed_forward(config.replaced(hidden_act="relu"), "relu", bias=False), activation="xielu")
    return ungated_feed_forward(config, "relu", bias=False)


def activation_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    return {
        f"layers.{i}.xielu": tuple(Source(f"{at}mlp.act_fn.{n}") for n in ("alpha_p", "alpha_n", "beta", "eps"))
        for i, at in layer_prefixes(spec, names)
        if spec.layers[i].feed_forward.activation == "xielu"
    }


FAMILY = Family(("apertus",), spec, TensorNames(MODULES), activation_sources)
