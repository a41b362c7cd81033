"""nanochat: norms without weights, one of them after the embedding, squared ReLU (transformers/models/nanochat).

Heads turn the other way, and are normed after that.
"""

from __future__ import annotations

from dataclasses import replace

from lapinfer.families.config import Config
from lapinfer.families.decoder import (
    attention_spec,
    layer_count,
    model_spec,
    rms_norm,
    rope_of,
    soft_cap,
    ungated_feed_forward,
)
from lapinfer.families.family import Family
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.spec import LayerSpec, ModelSpec

MODULES = {part: LLAMA[part] for part in ("embed", "qkv", "o")} | {"up": ("mlp.fc1",), "down": ("mlp.fc2",)}


def spec(config: Config) -> ModelSpec:
    bias, norm = config.flag("attention_bias", False), replace(rms_norm(config), weight=False)
    rope = rope_of(config)
    other_way = tuple(tuple(-turn for turn in turns) for turns in (rope.inv_freq, rope.long_inv_freq))
    rope = replace(rope, inv_freq=other_way[0], long_inv_freq=other_way[1])
    attention = attention_spec(config, rope, qkv_bias=bias, o_bias=bias, qk_norm=norm)
    layer = LayerSpec(
        replace(attention, qk_norm_after=True), ungated_feed_forward(config, "relu2", bias=False), norm, norm
    )
    softcap = soft_cap(config, "final_logit_softcapping", 15.0)
    config.expect(logits_soft_cap=softcap)
    model = model_spec(config, [layer] * layer_count(config), norm, logit_softcap=softcap)
    return replace(model, embed_norm=norm)


FAMILY = Family(("nanochat",), spec, TensorNames(MODULES))
