"""Command R7B and A: both halves behind one norm; only sliding layers have positions (transformers/models/cohere2)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    feed_forward_spec,
    layer_count,
    layer_norm,
    model_spec,
    rope_of,
    window_size,
    windows,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part not in ("ff_norm", "q_norm", "k_norm")}


def spec(config: Config) -> ModelSpec:
    config.refuse("use_qk_norm")
    config.expect(
        rotary_pct=1.0, position_embedding_type="rope_gptj", use_parallel_block=True, use_gated_activation=True,
        order_of_interleaved_layers="local_attn_first",
    )  # fmt: skip
    bias, norm = config.flag("attention_bias", False), layer_norm(config, bias=False)
    rope = rope_of(config, interleaved=True)
    period = config.integer("sliding_window_pattern", 4)
    slides = [(i + 1) % period != 0 for i in range(layer_count(config))]
    layers = [
        LayerSpec(
            attention_spec(config, rope if w else None, window=w, qkv_bias=bias, o_bias=bias),
            feed_forward_spec(config),
            norm,
            None,
            parallel=True,
        )
        for w in windows(config, slides, window_size(config))
    ]
    return model_spec(config, layers, norm, tied=True, logit_scale=config.number("logit_scale", 0.0625))


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, windows=True, layer_norm="layer_norm_eps")
    return config | {"logit_scale": metadata.number("logit_scale")}


IGNORED = ("layer_switch", "use_embedding_sharing", "use_parallel_embedding", "_sliding_window_pattern",
           "model_max_length")  # fmt: skip
FAMILY = Family(("cohere2",), spec, TensorNames(MODULES), gguf=GGUF("cohere2", gguf_config), ignored_keys=IGNORED)
