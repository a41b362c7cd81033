"""Shapes of models of realistic sizes, dense and sparse: for speed and bytes, not for quality.

Of one size, all have the same attention and vocabulary. `dense`, `moe` and `fff` have as many neurons; `dense-active`
has as many as a token computes in `moe` and `fff`.
"""

from __future__ import annotations

from lapinfer.errors import InputError
from lapinfer.report.sizes import KINDS, SIZES
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec, TreeSpec


def shape_spec(size: str, kind: str) -> ModelSpec:
    """InputError for a size or kind that there is not."""
    if size not in SIZES:
        raise InputError(f"{size}: no such size; expected {', '.join(SIZES)}")
    if kind not in KINDS:
        raise InputError(f"{kind}: no such kind; expected {', '.join(KINDS)}")
    of = SIZES[size]
    width = of.hidden // of.heads
    norm = NormSpec("rms", 1e-6)
    rope = RopeSpec(width, tuple(float(10_000 ** (-2 * i / width)) for i in range(width // 2)))
    attention = AttentionSpec(of.heads, of.kv_heads, width, width, width**-0.5, rope)
    feed_forward = {
        "dense": FeedForwardSpec(of.neurons, "silu"),
        "dense-active": FeedForwardSpec(of.active, "silu"),
        "moe": FeedForwardSpec(of.neurons // of.experts, "silu", router=RouterSpec(of.experts, of.top_k)),
        "fff": FeedForwardSpec(of.neurons >> of.depth, "silu", router=TreeSpec(of.depth)),
    }[kind]
    layers = (LayerSpec(attention, feed_forward, norm, norm),) * of.layers
    return ModelSpec({"moe": "mixtral", "fff": "lapinfer"}.get(kind, "llama"), of.vocab, of.hidden, layers, norm,
                     of.context)  # fmt: skip
