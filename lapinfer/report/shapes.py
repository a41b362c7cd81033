"""Models of realistic sizes with random weights, dense and sparse: for speed and bytes, not for quality.

Of one size, all have the same attention and vocabulary. `dense`, `moe` and `fff` have as many neurons; `dense-active`
has as many as a token computes in `moe` and `fff`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lapinfer.errors import DoesNotFitError, InputError
from lapinfer.machine import available_memory
from lapinfer.model import Model
from lapinfer.quant.choice import AUTO, MODELS, ROUTERS, head_format
from lapinfer.report.random_weights import random_weights
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import packed_bytes
from lapinfer.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec, RouterSpec, TreeSpec
from lapinfer.tensors import is_matrix, is_router, tensors

KINDS: Final = ("dense", "dense-active", "moe", "fff")


@dataclass(frozen=True, slots=True)
class Size:
    """active: neurons that a token computes of `neurons`; experts: of which top_k are active; depth: of the tree."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    neurons: int
    experts: int
    top_k: int
    depth: int
    vocab: int = 49_152
    context: int = 4096

    @property
    def active(self) -> int:
        return self.neurons // self.experts * self.top_k


SIZES: Final = {
    "100m": Size(512, 12, 8, 4, 4096, 16, 2, 3, 16_384),
    "1b": Size(2048, 16, 32, 8, 8192, 32, 4, 3),
    "7b": Size(4096, 32, 32, 8, 11_264, 32, 4, 3),
}
"""A tree of depth 3 has leaves of an eighth of the neurons, as many as 4 of 32 experts have."""


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


def shape_formats(spec: ModelSpec, quant: str) -> dict[str, str]:
    """As a large model is packed: routers in float32, a finer head."""
    quant = MODELS["large"] if quant == AUTO else quant
    head = head_format(quant, set(), "large")
    matrices = (name for name in tensors(spec) if is_matrix(name))
    return {name: ROUTERS[0] if is_router(name) else head if name == "embed" else quant for name in matrices}


def shape_model(size: str, kind: str, quant: str, limits: Limits) -> Model:
    """In memory, without a file. DoesNotFitError when there is too little memory for it."""
    spec = shape_spec(size, kind)
    formats = shape_formats(spec, quant)
    needed = sum(packed_bytes(spec, formats).values()) + context_bytes(spec, limits)
    free = available_memory()
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"{size}-{kind}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; try --quant q4"
        )
    weights = random_weights(tensors(spec), formats)
    return Model(spec, weights, limits, name=f"{size}-{kind}")
