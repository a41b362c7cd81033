"""Qwen 3: Llama with a norm on each query and key head (transformers/models/qwen3)."""

from __future__ import annotations

from lapinfer.families.config import Config
from lapinfer.families.decoder import rms_norm
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF
from lapinfer.families.qwen2 import qwen_model
from lapinfer.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    return qwen_model(config.with_defaults(head_dim=128), qkv_bias=bias, o_bias=bias, qk_norm=rms_norm(config))


FAMILY = Family(("qwen3",), spec, gguf=GGUF("qwen3"), ignored_keys=("sliding_window",))
