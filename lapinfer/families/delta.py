"""What the families with a gated delta rule share: Qwen3-Next's mixers, and where their rows stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from lapinfer.families.config import Config
from lapinfer.families.decoder import attention_spec, layer_count, rms_norm, rope_of, types_of_layers
from lapinfer.families.names import Source
from lapinfer.spec import AttentionSpec, LayerSpec, Mixer, ModelSpec, NormSpec, RecurrenceSpec

LINEAR, FULL = "linear_attention", "full_attention"
MOST_TAPS: Final = 1024
MOST_HEADS: Final = 4096
ROTATED: Final = 0.25
"""The share of a head that turns where config.json does not say."""


def mixers(config: Config) -> list[Mixer]:
    """The mixer of each layer: `layer_types`, or attention in every `full_attention_interval`th."""
    config.expect(hidden_act="silu")
    kinds: dict[str, Mixer] = {LINEAR: _delta_rule(config), FULL: _attention(config)}
    if "layer_types" in config:
        config.know("full_attention_interval")
        return [kinds[kind] for kind in types_of_layers(config, "layer_types", kinds)]
    interval = config.integer("full_attention_interval", 4)
    return [kinds[LINEAR if (i + 1) % interval else FULL] for i in range(layer_count(config))]


def _attention(config: Config) -> AttentionSpec:
    """With norms on heads, a gate, and rotation of a part of each head."""
    bias = config.flag("attention_bias", False)
    config = config.with_defaults(head_dim=256)
    rope, norm = rope_of(config, partial=ROTATED), zero_centred(config)
    return attention_spec(config, rope, qkv_bias=bias, o_bias=bias, qk_norm=norm, gated=True)


def _delta_rule(config: Config) -> RecurrenceSpec:
    key_heads = config.integer("linear_num_key_heads", 16, most=MOST_HEADS)
    heads = config.integer("linear_num_value_heads", 32, most=MOST_HEADS)
    if heads % key_heads:
        raise config.wrong("linear_num_value_heads", f"a multiple of linear_num_key_heads, {key_heads}")
    width = config.integer("linear_value_head_dim", 128, most=MOST_HEADS)
    return RecurrenceSpec(
        "delta",
        kernel=config.integer("linear_conv_kernel_dim", 4, most=MOST_TAPS),
        heads=heads,
        key_heads=key_heads,
        k_dim=config.integer("linear_key_head_dim", 128, most=MOST_HEADS),
        v_dim=width,
        norm=rms_norm(config),
        norm_width=width,
        norm_shared=True,
    )


def zero_centred(config: Config) -> NormSpec:
    """A norm whose stored weights are what is added to 1."""
    return rms_norm(config, offset=1.0)


def sources_of_attention(layer: LayerSpec, prefix: str, ours: str) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """Queries, keys, values and gates: q_proj has each head's queries, and then its gate."""
    attention = layer.attention
    if attention is None:
        return
    dim = attention.k_dim
    for suffix in ("weight", "bias") if attention.qkv_bias else ("weight",):
        stored = {which: f"{prefix}self_attn.{which}_proj.{suffix}" for which in "qkv"}
        starts = range(0, 2 * dim * attention.n_heads, 2 * dim)
        queries = (Source(stored["q"], start, start + dim) for start in starts)
        gates = (Source(stored["q"], start + dim, start + 2 * dim) for start in starts)
        name = f"{ours}qkv" if suffix == "weight" else f"{ours}qkv.bias"
        yield name, (*queries, Source(stored["k"]), Source(stored["v"]), *gates)


def sources_of_delta_rule(
    layer: LayerSpec, prefix: str, ours: str, names: Collection[str]
) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """All of a recurrence: Qwen3.5 stores its four parts by themselves, Qwen3-Next two by two, key head by key head."""
    if (recurrence := layer.recurrence) is None:
        return
    p = f"{prefix}linear_attn."
    if f"{p}in_proj_qkv.weight" in names:
        yield f"{ours}mix_in", tuple(Source(f"{p}in_proj_{part}.weight") for part in ("qkv", "z", "a", "b"))
    else:
        yield f"{ours}mix_in", tuple(_by_key_heads(recurrence, p))
    yield f"{ours}conv.weight", (Source(f"{p}conv1d.weight"),)
    yield f"{ours}decay", (Source(f"{p}A_log"),)
    yield f"{ours}step", (Source(f"{p}dt_bias"),)
    yield f"{ours}mix_norm.weight", (Source(f"{p}norm.weight"),)
    yield f"{ours}mix_out", (Source(f"{p}out_proj.weight"),)


def _by_key_heads(recurrence: RecurrenceSpec, prefix: str) -> Iterator[Source]:
    """Rows of q, k, v, z, a and b: each key head has its own, and those of the heads that share it."""
    shared = recurrence.heads // recurrence.key_heads
    k, v = recurrence.k_dim, shared * recurrence.v_dim
    parts = (
        ("in_proj_qkvz.weight", 2 * k + 2 * v, ((0, k), (k, 2 * k), (2 * k, 2 * k + v), (2 * k + v, 2 * k + 2 * v))),
        ("in_proj_ba.weight", 2 * shared, ((shared, 2 * shared), (0, shared))),
    )
    for name, each, spans in parts:
        for first, stop in spans:
            for head in range(recurrence.key_heads):
                yield Source(prefix + name, each * head + first, each * head + stop)


def sources(
    spec: ModelSpec, prefixes: Iterator[tuple[int, str]], names: Collection[str]
) -> dict[str, tuple[Source, ...]]:
    """Of all layers; prefixes: what the names of each layer's stored tensors begin with."""
    found: dict[str, tuple[Source, ...]] = {}
    for i, prefix in prefixes:
        layer, ours = spec.layers[i], f"layers.{i}."
        found |= dict(sources_of_attention(layer, prefix, ours))
        found |= dict(sources_of_delta_rule(layer, prefix, ours, names))
    return found
