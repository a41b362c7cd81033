"""Ministral 3: Mistral with YaRN, and queries that grow with their position (transformers/models/ministral3).

Published files have it under mistral3, with a part that sees images; the text part of Mistral Small 3 is a Mistral.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    context,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    window_size,
)
from lapinfer.families.family import Family
from lapinfer.families.gemma3 import text_config
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.mistral import spec as mistral
from lapinfer.families.names import TensorNames
from lapinfer.families.rope import rope_section
from lapinfer.spec import GrowthSpec, LayerSpec, ModelSpec

ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
"""Rope parameters of a config.json that has none."""


def spec(config: Config) -> ModelSpec:
    if config.text("model_type") == "mistral3":
        config = text_config(config, tied=False)
        kind = config.text("model_type", "mistral")
        if kind == "mistral":
            return mistral(config)
        if kind != "ministral3":
            raise config.unsupported("model_type", "mistral, ministral3")
    config.refuse("attention_bias", "mlp_bias")
    config = config.with_absent(head_dim=128, num_key_value_heads=8)
    if "rope_scaling" not in config and "rope_parameters" not in config:
        config = config.with_defaults(rope_parameters=ROPE)
    section = rope_section(config)
    section.know("max_position_embeddings")
    growth = None
    if beta := section.number("llama_4_scaling_beta", 0.0, least=0.0, most=1e3):
        growth = GrowthSpec(beta, section.integer("original_max_position_embeddings", context(config), most=1 << 30))
    attention = replace(attention_spec(config, rope_of(config), window=window_size(config, None)), growth=growth)
    norm = rms_norm(config, eps=1e-5)
    layer = LayerSpec(attention, feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, windows=True, log_multiplier=True)
    beta = metadata.number("attention.temperature_scale", 0.0)
    if beta and "rope_scaling" not in config:
        raise metadata.unsupported("attention.temperature_scale without YaRN is not known")
    if beta:
        config["rope_scaling"]["llama_4_scaling_beta"] = beta
    return {"sliding_window": None, "rope_parameters": {"rope_type": "default"}} | config


NAMES = TensorNames(
    prefixes=("model.", "", "language_model.model.", "model.language_model."), heads=("", "language_model.")
)
IGNORED = ("vision_config", "image_token_index", "multimodal_projector_bias", "projector_hidden_act",
           "spatial_merge_size", "vision_feature_layer", "layer_types")  # fmt: skip
GGUF_FILES = GGUF("mistral3", gguf_config, permuted=True)
FAMILY = Family(("ministral3", "mistral3"), spec, NAMES, gguf=GGUF_FILES, ignored_keys=IGNORED)
