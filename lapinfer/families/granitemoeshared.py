"""Granite with experts and a shared one (transformers/models/granitemoeshared)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.family import Family
from lapinfer.families.granitemoe import spec as granitemoe_spec
from lapinfer.families.names import GRANITE, Layout, TensorNames
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    key = "shared_intermediate_size"
    return granitemoe_spec(config, (key, config.integer(key, 0, least=0)))


SHARED = Layout(("shared_mlp.input_linear.weight",), "shared_mlp.output_linear.weight")
FAMILY = Family(("granitemoeshared",), spec, TensorNames(experts=GRANITE, shared=SHARED), ignored_keys=("init_method",))
