"""Granite with experts and a shared one (transformers/models/granitemoeshared)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.family import Family
from lapinfer.families.granite import granite_model
from lapinfer.families.granitemoe import granite_experts
from lapinfer.families.names import GRANITE, Layout, TensorNames
from lapinfer.spec import FeedForwardSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    return granite_model(config, granite_experts_and_shared(config))


def granite_experts_and_shared(config: Config) -> FeedForwardSpec:
    key = "shared_intermediate_size"
    return granite_experts(config, (key, config.integer(key, 0, least=0)))


SHARED = Layout(("shared_mlp.input_linear.weight",), "shared_mlp.output_linear.weight")
NAMES = TensorNames(experts=GRANITE, shared=SHARED)
FAMILY = Family(("granitemoeshared",), spec, NAMES, ignored_keys=("init_method",))
