"""Mixtral: Mistral with experts (transformers/models/mixtral)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, layer_count, model_spec, rms_norm, rope_of, window_size
from lapinfer.families.experts import routed_feed_forward, router_spec
from lapinfer.families.family import Family
from lapinfer.families.names import MIXTRAL, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec


def spec(config: Config) -> ModelSpec:
    attention = attention_spec(config, rope_of(config, 1e6), window=window_size(config, None))
    router = router_spec(config, "num_local_experts", normalise=True)
    norm = rms_norm(config, eps=1e-5)
    layer = LayerSpec(attention, routed_feed_forward(config, router, "intermediate_size"), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


FAMILY = Family(("mixtral",), spec, TensorNames(experts=MIXTRAL))
