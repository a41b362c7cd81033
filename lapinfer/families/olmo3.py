"""OLMo 3: OLMo 2 with windows on three of four layers, whose positions are not scaled (transformers/models/olmo3)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import layer_count, ropes_by_layer_type, window_size, windows
from lapinfer.families.family import Family
from lapinfer.families.names import TensorNames
from lapinfer.families.olmo2 import MODULES, olmo_model
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    full, sliding = ropes_by_layer_type(config, theta=5e5, sliding_theta=5e5)
    slides = [(i + 1) % 4 != 0 for i in range(layer_count(config))]
    return olmo_model(config, [(sliding if w else full, w) for w in windows(config, slides, window_size(config))])


FAMILY = Family(("olmo3",), spec, TensorNames(MODULES))
