"""Hunyuan: norms on heads after the rotation, whose base may be scaled (transformers/models/hunyuan_v1_dense)."""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    context,
    feed_forward_spec,
    head_dim,
    layer_count,
    model_spec,
    rms_norm,
)
from lapinfer.families.family import Family
from lapinfer.families.gguf import GGUF
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.families.rope import rope_kind, rope_section, rope_spec
from lapinfer.spec import LayerSpec, ModelSpec, RopeSpec

MODULES = {**LLAMA, "q_norm": ("self_attn.query_layernorm",), "k_norm": ("self_attn.key_layernorm",)}


def spec(config: Config) -> ModelSpec:
    config.refuse("mlp_bias", "use_cla")
    config.expect(use_qk_norm=True, norm_type="rms", attention_head_dim=head_dim(config), num_experts=1)
    bias, norm = config.flag("attention_bias", False), rms_norm(config, eps=1e-5)
    attention = attention_spec(config, _rope(config), qkv_bias=bias, o_bias=bias, qk_norm=norm)
    layer = LayerSpec(replace(attention, qk_norm_after=True), feed_forward_spec(config), norm, norm)
    return model_spec(config, [layer] * layer_count(config), norm)


def _rope(config: Config) -> RopeSpec:
    """A fixed `alpha` scales the base, whatever the length (NTK-aware); files call that dynamic."""
    section, dim = rope_section(config), head_dim(config)
    if rope_kind(section) == "dynamic" and section.get("alpha"):
        alpha, theta = section.number("alpha", most=1e6), section.number("rope_theta", least=1.001, most=1e9)
        section = section.replaced(rope_type="default", rope_theta=theta * alpha ** (dim / max(dim - 2, 1)))
    return rope_spec(section, dim, context(config))


IGNORED = (
    "cla_share_factor", "class_num", "dense_list", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id",
    "org_vocab_size", "pad_id", "pool_type", "text_end_id", "text_start_id",
)  # fmt: skip
"""Of the program that trained it."""

FAMILY = Family(("hunyuan_v1_dense",), spec, TensorNames(MODULES), gguf=GGUF("hunyuan-dense"), ignored_keys=IGNORED)
