"""What a model IS: sizes and options, no weights.

Letters used for shapes everywhere: T tokens, D hidden width, H query heads, K key/value heads,
F feed-forward width, V vocabulary, L layers.

A family turns a config.json into a `ModelSpec`; the plan builder turns a `ModelSpec` and packed weights
into ops. `tensors(spec)` names every weight that a model of this spec has, and its shape:

    embed [V, D]   positions [P, D]   norm.weight [D]   norm.bias [D]   head [V, D]   head.bias [V]
    layers.N.attn_norm, .attn_post_norm, .ff_norm, .ff_post_norm: .weight [D] and .bias [D]
    layers.N.qkv [H·k + K·k + K·v, D], query rows first, then key, then value   layers.N.qkv.bias
    layers.N.q_norm.weight, .k_norm.weight   [k] (one head) or [H·k], [K·k] (the full width)
    layers.N.o [D, H·v]   layers.N.o.bias
    layers.N.gate_up [2F, D], gate rows first (gated), or layers.N.up [F, D]   with .bias
    layers.N.down [D, F]   layers.N.down.bias
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
"""`gelu` is the exact one (erf), `gelu_tanh` its tanh approximation, `relu2` the square of relu."""


@dataclass(frozen=True, slots=True)
class NormSpec:
    """y = x / rms(x) · (w + offset), or y = (x − mean) / sd(x) · (w + offset) + b for `layer`."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    bias: bool = False


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions on the first `dim` of each head: pair i turns by position · inv_freq[i].

    Pairs are (i, i + dim/2); `interleaved` pairs are (2i, 2i + 1). `scale` multiplies cos and sin.
    A context larger than `long_context` (when not 0) uses `long_inv_freq` and `long_scale` instead.
    """

    dim: int
    inv_freq: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False
    long_context: int = 0
    long_inv_freq: tuple[float, ...] = ()
    long_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """softmax(mask(cap(q·k · scale))) · v, H query heads over K shared key/value heads.

    `window`: a query at p sees keys p − window + 1 … p. `softcap` c: s becomes c·tanh(s / c).
    `qk_norm` is applied before the rotation, to each head or to all heads at once (`qk_norm_full`).
    """

    n_heads: int
    n_kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: NormSpec | None = None
    qk_norm_full: bool = False

    @property
    def qkv_rows(self) -> int:
        return self.n_heads * self.k_dim + self.n_kv_heads * (self.k_dim + self.v_dim)


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """down(act(gate(x)) · up(x)) when gated, else down(act(up(x)))."""

    width: int
    activation: Activation
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x += s · post(attention(norm(x))); x += s · post(feed_forward(norm(x))); a norm may be absent."""

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    attn_norm: NormSpec | None
    ff_norm: NormSpec | None
    attn_post_norm: NormSpec | None = None
    ff_post_norm: NormSpec | None = None
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: x = embed[token] · embed_scale (+ positions[pos]), layers, norm, head.

    logits = cap(head(x) · logit_scale). `context` is the longest sequence the model was trained for.
    """

    family: str
    vocab: int
    hidden: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    context: int
    tied: bool = True
    embed_scale: float = 1.0
    positions: int = 0
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None


def _norm_tensors(name: str, norm: NormSpec | None, width: int) -> dict[str, tuple[int, ...]]:
    if norm is None:
        return {}
    named = {f"{name}.weight": (width,)}
    return named | {f"{name}.bias": (width,)} if norm.bias else named


def layer_tensors(spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of one layer."""
    layer, D = spec.layers[index], spec.hidden
    attention, ff = layer.attention, layer.feed_forward
    p = f"layers.{index}."
    shapes = _norm_tensors(p + "attn_norm", layer.attn_norm, D)
    shapes[p + "qkv"] = (attention.qkv_rows, D)
    if attention.qkv_bias:
        shapes[p + "qkv.bias"] = (attention.qkv_rows,)
    if attention.qk_norm is not None:
        heads = (attention.n_heads, attention.n_kv_heads) if attention.qk_norm_full else (1, 1)
        for which, n in zip("qk", heads, strict=True):
            shapes |= _norm_tensors(f"{p}{which}_norm", attention.qk_norm, n * attention.k_dim)
    shapes[p + "o"] = (D, attention.n_heads * attention.v_dim)
    if attention.o_bias:
        shapes[p + "o.bias"] = (D,)
    shapes |= _norm_tensors(p + "attn_post_norm", layer.attn_post_norm, D)
    shapes |= _norm_tensors(p + "ff_norm", layer.ff_norm, D)
    up, rows = (p + "gate_up", 2 * ff.width) if ff.gated else (p + "up", ff.width)
    shapes[up] = (rows, D)
    shapes[p + "down"] = (D, ff.width)
    if ff.bias:
        shapes[up + ".bias"] = (rows,)
        shapes[p + "down.bias"] = (D,)
    return shapes | _norm_tensors(p + "ff_post_norm", layer.ff_post_norm, D)


def tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and logical shape of every weight, in the order in which a step reads them."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (spec.vocab, spec.hidden)}
    if spec.positions:
        shapes["positions"] = (spec.positions, spec.hidden)
    for i in range(len(spec.layers)):
        shapes |= layer_tensors(spec, i)
    shapes |= _norm_tensors("norm", spec.norm, spec.hidden)
    if not spec.tied:
        shapes["head"] = (spec.vocab, spec.hidden)
    if spec.head_bias:
        shapes["head.bias"] = (spec.vocab,)
    return shapes


def is_matrix(name: str) -> bool:
    """Whether a tensor of `tensors(spec)` is multiplied with activations, and so is packed and quantized."""
    return name.rsplit(".", 1)[-1] in {"embed", "qkv", "o", "gate_up", "up", "down", "head"}
