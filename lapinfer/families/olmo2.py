"""OLMo 2: norms only after attention and feed-forward, and on whole query and key (transformers/models/olmo2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, feed_forward_spec, layer_count, model_spec, rms_norm, rope_of
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF, decoder_config, sliding_layers
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec, RopeSpec

MODULES = {part: modules for part, modules in LLAMA.items() if part not in ("attn_norm", "ff_norm")} | {
    "attn_post_norm": ("post_attention_layernorm",),
    "ff_post_norm": ("post_feedforward_layernorm",),
}


def spec(config: Config) -> ModelSpec:
    return olmo_model(config, [(rope_of(config), None)] * layer_count(config))


def olmo_model(config: Config, layers: Iterable[tuple[RopeSpec, int | None]]) -> ModelSpec:
    """The model whose layers have these rotary positions and windows."""
    bias, norm, feed_forward = (
        config.flag("attention_bias", False),
        rms_norm(config, eps=1e-5),
        feed_forward_spec(config),
    )
    return model_spec(
        config,
        [
            LayerSpec(
                attention_spec(
                    config, rope, window=window, qkv_bias=bias, o_bias=bias, qk_norm=norm, qk_norm_full=True
                ),
                feed_forward,
                None,
                None,
                norm,
                norm,
            )
            for rope, window in layers
        ],
        norm,
    )


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    """With windows it is an OLMo 3, which llama.cpp calls olmo2, too: its sliding layers don't scale positions."""
    config = decoder_config(metadata, windows=True)
    if "sliding_window" not in config:
        return config
    theta, scaling = {"rope_theta": config.pop("rope_theta")}, config.pop("rope_scaling", {})
    ropes = {"full_attention": {**theta, **scaling}, "sliding_attention": theta}
    return config | {"model_type": "olmo3", "rope_parameters": ropes, **sliding_layers(metadata)}


FAMILY = Family(("olmo2",), spec, TensorNames(MODULES), gguf=GGUF("olmo2", gguf_config))
