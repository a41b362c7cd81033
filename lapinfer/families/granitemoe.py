"""Granite 3 with experts, weighed by the softmax of the chosen logits (transformers/models/granitemoe)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.granite import granite_model
from lapinfer.families.names import GRANITE, TensorNames
from lapinfer.spec import FeedForwardSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    return granite_model(config, granite_experts(config))


def granite_experts(config: Config, shared: tuple[str, int] = ("", 0)) -> FeedForwardSpec:
    """`shared`: key and width of granitemoeshared's shared expert."""
    router = router_spec(config, "num_local_experts", score="logits")
    return routed_feed_forward(config, router, "intermediate_size", shared)


FAMILY = Family(("granitemoe",), spec, TensorNames(experts=GRANITE))
