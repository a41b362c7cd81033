"""Granite with experts, windows and attention sinks (transformers/models/granitemoe_swa)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.family import Family
from lapinfer.families.granite import granite_model
from lapinfer.families.granite_swa import sink_sources, sliding_attentions
from lapinfer.families.granitemoeshared import NAMES, granite_experts_and_shared
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    return granite_model(config, granite_experts_and_shared(config), sliding_attentions(config))


FAMILY = Family(("granitemoe_swa",), spec, NAMES, sink_sources)
