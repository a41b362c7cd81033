"""Gemma 3, text: two rotary bases, five windows to one full layer, norms on heads (transformers/models/gemma3)."""

from __future__ import annotations

from typing import Any

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    embed_scale,
    feed_forward_spec,
    layer_count,
    model_spec,
    rms_norm,
    ropes_by_layer_type,
    soft_cap,
    window_size,
    windows,
)
from lapinfer.families.family import Family
from lapinfer.families.gemma2 import SANDWICH, gemma_config, sandwich_layer
from lapinfer.families.gguf import GGUF, decoder_config
from lapinfer.families.gguf_metadata import Metadata
from lapinfer.families.names import TensorNames
from lapinfer.spec import ModelSpec

NAMES = TensorNames(
    SANDWICH,
    prefixes=("model.", "", "language_model.model.", "model.language_model."),
    heads=("", "language_model."),
)
IGNORED = ("hidden_act", "sliding_window_pattern", "_sliding_window_pattern", "vision_config", "mm_tokens_per_image",
           "boi_token_index", "eoi_token_index", "image_token_index")  # fmt: skip
DEFAULTS = {  # published files leave out what equals these
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
}  # fmt: skip


def spec(config: Config) -> ModelSpec:
    if config.text("model_type") == "gemma3":
        config = text_config(config)
    config = config.with_defaults(**DEFAULTS)
    config.refuse("attn_logit_softcapping", "use_bidirectional_attention", "quantization_config")
    norm = rms_norm(config, offset=1.0)
    bias = config.flag("attention_bias", False)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    feed_forward = feed_forward_spec(config, "hidden_activation")
    pattern = config.integer("sliding_window_pattern", 6)
    slides = [(i + 1) % pattern != 0 for i in range(layer_count(config))]
    full, sliding = ropes_by_layer_type(config)
    layers = [
        sandwich_layer(
            attention_spec(config, rope, window=w, scale=scale, qkv_bias=bias, o_bias=bias, qk_norm=norm),
            feed_forward,
            norm,
        )
        for w in windows(config, slides, window_size(config))
        for rope in [sliding if w else full]
    ]
    softcap = soft_cap(config, "final_logit_softcapping", None)
    return model_spec(config, layers, norm, tied=True, embed_scale=embed_scale(config), logit_softcap=softcap)


def text_config(config: Config, tied: bool = True) -> Config:
    """The text part of a model that also sees images; keys of the whole model win. tied: the family's default."""
    text = config.section("text_config")
    outer = {key: config.get(key) for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in config}
    return text.replaced(**{"tie_word_embeddings": tied, **text.values, **outer})


def gguf_config(metadata: Metadata) -> dict[str, Any]:
    config = decoder_config(metadata, windows=True)
    if "sliding_window" not in config:
        raise metadata.wrong("attention.sliding_window", "missing or 0", "the width of the window")
    config["rope_local_base_freq"] = metadata.number("rope.freq_base_swa", 1e4)
    return gemma_config(metadata, config, largest=62)


FAMILY = Family(
    ("gemma3_text", "gemma3"),
    spec,
    NAMES,
    gguf=GGUF("gemma3", gguf_config, norms_plus_one=True),
    ignored_keys=IGNORED,
)
