"""Qwen 3.5, text: the layers of Qwen3-Next, dense or with experts (transformers/models/qwen3_5, qwen3_5_moe).

Published files have it under qwen3_5 and qwen3_5_moe, with a part that sees images. Of positions in images, text has
three alike, so the rotation is the usual one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import feed_forward_spec, model_spec
from lapinfer.families.delta import mixers, sources, zero_centred
from lapinfer.families.family import Family
from lapinfer.families.gemma3 import text_config
from lapinfer.families.names import Sources, layer_prefixes
from lapinfer.families.qwen3_next import NAMES as NEXT
from lapinfer.families.qwen3_next import experts_of, layer_of
from lapinfer.spec import ModelSpec

NAMES = replace(
    NEXT,
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    heads=("", "language_model.", "model.language_model."),
)
SIZES = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "num_experts",
    "num_experts_per_tok",
)  # fmt: skip
WITH_IMAGES = ("qwen3_5", "qwen3_5_moe")


def spec(config: Config) -> ModelSpec:
    if config.text("model_type") in WITH_IMAGES:
        expected = f"{config.text('model_type')}_text"
        config = text_config(config, tied=False)
        config.expect(model_type=expected)
        config = config.replaced(model_type=expected)
    for section in ("rope_parameters", "rope_scaling"):
        config.section(section).know("mrope_section", "mrope_interleaved")
    config.expect(attn_output_gate=True)
    if config.get("output_gate_type") not in (None, "swish", "silu"):
        raise config.unsupported("output_gate_type", "swish")
    config.know(*SIZES)  # the other kind's, which its model_type rules out
    is_routed = config.text("model_type") == "qwen3_5_moe_text"
    feed_forward = experts_of(config, normalise=True) if is_routed else feed_forward_spec(config)
    layers = [layer_of(config, mixer, feed_forward) for mixer in mixers(config)]
    return model_spec(config, layers, zero_centred(config))


def more_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    return sources(spec, layer_prefixes(spec, names, NAMES), names or _stored_apart(spec))


def _stored_apart(spec: ModelSpec) -> list[str]:
    """Names that say how a recurrence's rows are stored, where none are known."""
    return [f"model.layers.{i}.linear_attn.in_proj_qkv.weight" for i in range(len(spec.layers))]


IGNORED = ("vision_config", "language_model_only", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
           "mamba_ssm_dtype")  # fmt: skip
FAMILY = Family(("qwen3_5_text", "qwen3_5_moe_text", *WITH_IMAGES), spec, NAMES, more_sources, ignored_keys=IGNORED)
