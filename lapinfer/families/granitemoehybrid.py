"""Granite 4: layers of Mamba-2 and of attention, with experts or without (transformers/models/granitemoehybrid)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count, rope_of, types_of_layers
from lapinfer.families.family import Family
from lapinfer.families.granite import granite_attention, granite_model
from lapinfer.families.granitemoeshared import SHARED, granite_experts_and_shared
from lapinfer.families.mamba import mamba2, sources_of_mamba2
from lapinfer.families.names import GRANITE, LLAMA, Sources, TensorNames, layer_prefixes
from lapinfer.spec import FeedForwardSpec, Mixer, ModelSpec

NAMES = TensorNames(
    {**LLAMA, "gate_up": ("shared_mlp.input_linear",), "down": ("shared_mlp.output_linear",)},
    experts=GRANITE,
    shared=SHARED,
)
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")


def spec(config: Config) -> ModelSpec:
    return granite_model(config, _feed_forward(config), _mixers(config))


def _feed_forward(config: Config) -> FeedForwardSpec:
    """Experts and a shared one, or that one alone where `num_local_experts` is 0."""
    config = config.with_defaults(shared_intermediate_size=1024)
    if config.integer("num_local_experts", 8, least=0) > 0:
        return granite_experts_and_shared(config)
    config.know("num_experts_per_tok", "intermediate_size")
    return FeedForwardSpec(config.integer("shared_intermediate_size"), config.activation())


def _mixers(config: Config) -> list[Mixer]:
    """`layer_types`, in the words of transformers 4 or 5; without it all are Mamba's."""
    attention = granite_attention(config, rope_of(config) if _is_rotated(config) else None)
    recurrence = mamba2(config)
    kinds: dict[str, Mixer] = {
        "mamba": recurrence, "linear_attention": recurrence, "attention": attention, "full_attention": attention,
    }  # fmt: skip
    key = next((key for key in ("layer_types", "layers_block_type") if key in config), None)
    if key is None:
        return [recurrence] * layer_count(config)
    config.know("layer_types", "layers_block_type")
    return [kinds[kind] for kind in types_of_layers(config, key, kinds)]


def _is_rotated(config: Config) -> bool:
    """`position_embedding_type`: without it, and where it is "nope", attention has no positions."""
    kind = config.text("position_embedding_type", "nope")
    if kind not in ("nope", "rope"):
        raise config.unsupported("position_embedding_type", "nope, rope")
    config.know(*ROPE)
    return kind == "rope"


def more_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    found: Sources = {}
    for i, prefix in layer_prefixes(spec, names, NAMES):
        found |= dict(sources_of_mamba2(spec.layers[i], f"{prefix}mamba.", f"layers.{i}."))
    return found


FAMILY = Family(("granitemoehybrid",), spec, NAMES, more_sources, ignored_keys=("init_method",))
