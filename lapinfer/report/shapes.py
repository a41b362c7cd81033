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
    shape = SIZES[size]
    width = shape.hidden // shape.heads
    norm = NormSpec("rms", 1e-6)
    rope = RopeSpec(width, tuple(float(10_000 ** (-2 * i / width)) for i in range(width // 2)))
    attention = AttentionSpec(shape.heads, shape.kv_heads, width, width, width**-0.5, rope)
    feed_forward = {
        "dense": FeedForwardSpec(shape.neurons, "silu"),
        "dense-active": FeedForwardSpec(shape.active, "silu"),
        "moe": FeedForwardSpec(shape.neurons // shape.experts, "silu", router=RouterSpec(shape.experts, shape.top_k)),
        "fff": FeedForwardSpec(shape.neurons >> shape.depth, "silu", router=TreeSpec(shape.depth)),
    }[kind]
    layers = (LayerSpec(attention, feed_forward, norm, norm),) * shape.layers
    return ModelSpec({"moe": "mixtral", "fff": "lapinfer"}.get(kind, "llama"), shape.vocab, shape.hidden, layers, norm,
                     shape.context)  # fmt: skip
