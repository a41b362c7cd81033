"""dots.llm1: Qwen 3's attention, DeepSeek-V3's experts (transformers/models/dots1)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, layer_count, rms_norm, rope_of, window_size, windows
from lapinfer.families.deepseek_v2 import deepseek_model, sparse_after
from lapinfer.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from lapinfer.families.experts import sigmoid_router
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    if config.get("scoring_func") == "noaux_tc":  # what published files call sigmoids with a bias that selects
        config = config.replaced(scoring_func="sigmoid")
    bias, norm, rope = config.flag("attention_bias", False), rms_norm(config), rope_of(config)
    window, first = window_size(config), config.integer("max_window_layers", 62, least=0)
    slides = [window is not None and i >= first for i in range(layer_count(config))]
    attentions = [
        attention_spec(config, rope, window=w, qkv_bias=bias, o_bias=bias, qk_norm=norm)
        for w in windows(config, slides, window)
    ]
    router = sigmoid_router(config, normalise=False, scale=1.0, groups=(1, 1))
    return deepseek_model(config, attentions, router, sparse_after(config, 0), shared=0)


IGNORED = ("intermediate_size", "topk_method")
FAMILY = replace(DEEPSEEK_V3, model_types=("dots1",), spec=spec, more_sources=None, ignored_keys=IGNORED)
