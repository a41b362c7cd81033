"""Granite with experts and a shared one (transformers/models/granitemoeshared)."""

from __future__ import annotations

from collections.abc import Collection

from lapinfer.families import Source, granitemoe
from lapinfer.families.config import Config
from lapinfer.families.experts import GRANITE, Layout, expert_sources
from lapinfer.spec import ModelSpec

SHARED = Layout(("shared_mlp.input_linear.weight",), "shared_mlp.output_linear.weight")


def spec(config: Config) -> ModelSpec:
    key = "shared_intermediate_size"
    return granitemoe.spec(config, "granitemoeshared", (key, config.integer(key, 0, least=0)))


def sources(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, tuple[Source, ...]]:
    return expert_sources(spec, names, GRANITE, shared=SHARED)
