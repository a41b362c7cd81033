"""What a model IS: sizes and options, no weights.

Letters used for shapes everywhere: T tokens, D hidden width, H query heads, K key/value heads,
F feed-forward width, E experts, A experts a token gets, V vocabulary, L layers.

A family turns a config.json into a `ModelSpec`; the plan builder turns a `ModelSpec` and packed weights
into ops. `tensors(spec)` names every weight that a model of this spec has, and its shape:

    embed [V, D]   positions [P, D]   norm.weight [D]   norm.bias [D]   head [V, D]   head.bias [V]
    layers.N.attn_norm, .attn_post_norm, .ff_norm, .ff_post_norm: .weight [D] and .bias [D]
    layers.N.qkv [H·k + K·k + K·v, D], query rows first, then key, then value   layers.N.qkv.bias
    layers.N.q_norm.weight, .k_norm.weight   [k] (one head) or [H·k], [K·k] (the full width)
    layers.N.o [D, H·v]   layers.N.o.bias
    layers.N.sinks [H]
    layers.N.gate_up [2F, D], gate rows first (gated), or layers.N.up [F, D]   with .bias
    layers.N.down [D, F]   layers.N.down.bias

With a convolution instead of attention:

    layers.N.conv_in [3D, D], rows of B, C, x   layers.N.conv.weight [D, kernel]   layers.N.conv_out [D, D]   with .bias

With latent attention (r = rank, n = nope, p = rotated width), instead of the usual qkv and its norms:

    layers.N.qkv [Q + r + p, D], where Q is q_rank, or H·(n + p) when there is none   layers.N.qkv.bias
    layers.N.q_a_norm.weight [q_rank]   layers.N.q_b [H·(n + p), q_rank]   layers.N.kv_norm.weight [r]
    layers.N.k_up [H, r, n]   layers.N.v_up [H, v, r]   layers.N.o [D, H·v]

With a router, E counting the shared experts, which come last:

    layers.N.router [E routed (+ 1: the shared experts' gate), D]   layers.N.router.bias, .router.selection_bias
    layers.N.experts.gate_up [E, 2F, D] or .experts.up [E, F, D]   layers.N.experts.down [E, D, F]   with .bias [E, …]
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"]
"""`gelu` is the exact one (erf), `gelu_tanh` its tanh approximation, `relu2` the square of relu.

`swiglu_oai` needs a gate: (up + 1) · gate · σ(1.702 · gate), with gate ≤ 7 and −7 ≤ up ≤ 7.
"""


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
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token leaves one latent [rank], normed, and one rotated key [p], which all heads share. Head h has as key
    (k_up[h]ᵀ · latent, rotated key) and as value v_up[h] · latent [v_dim]; its query [nope + p] comes from x, or from
    x through a normed [q_rank]. Since q · (k_upᵀ · latent) = (k_up · q) · latent, it is run as attention of H heads
    over a single one, whose keys are (latent, rotated key) and whose values are the latents.
    """

    rank: int
    nope: int
    v_dim: int
    norm: NormSpec
    q_rank: int = 0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """softmax(mask(cap(q·k · scale))) · v, H query heads over K shared key/value heads.

    `window`: a query at p sees keys p − window + 1 … p. `softcap` c: s becomes c·tanh(s / c).
    `qk_norm` is applied before the rotation, to each head or to all heads at once (`qk_norm_full`).
    `clip` c: queries, keys and values are cut to −c … c between norm and rotation. `sinks`: a score for each head
    that takes part in the softmax and has no value. `latent`: K is 1, k_dim rank + p, v_dim rank, and `rope`
    turns the last p columns of a key.
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
    clip: float | None = None
    sinks: bool = False
    latent: LatentSpec | None = None

    @property
    def qkv_rows(self) -> int:
        if self.latent is not None:
            return (self.latent.q_rank or self.q_rows) + self.k_dim
        return self.q_rows + self.n_kv_heads * (self.k_dim + self.v_dim)

    @property
    def q_rows(self) -> int:
        """Query numbers of a token, all heads."""
        if self.latent is not None:
            return self.n_heads * (self.latent.nope + self.k_dim - self.latent.rank)
        return self.n_heads * self.k_dim

    @property
    def out_width(self) -> int:
        """Columns of the matrix that follows."""
        return self.n_heads * (self.v_dim if self.latent is None else self.latent.v_dim)


@dataclass(frozen=True, slots=True)
class ConvolutionSpec:
    """A gated short convolution over the positions t of a sequence (LFM2), column by column, in place of attention:

    (B, C, x) = in · norm(x); z = B · x; y[t] = out · (C[t] · Σ_j w[j] · z[t − kernel + 1 + j]), and z is 0 before the
    first position. `bias`: all three have one.
    """

    kernel: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Which `top_k` of `n_experts` experts a token gets, and their weights; l = router · x (+ bias).

    `score` s of an expert, from all logits l:
        softmax      s = softmax(l); the weights are the chosen s
        sigmoid      s = σ(l); the same
        logits       s = l; the weights are the softmax of the chosen l
        sparsemixer  Phi-3.5-MoE's: the largest l is chosen; its weight is its softmax over the experts with
                     (largest − l) / max(|l|, largest) ≤ 2 · jitter; then the same again without it. top_k is 2.
    Chosen are the largest s (+ selection_bias, which weighs nothing); of equal ones the first. With `groups`, experts
    in order form that many groups, and only those of the `top_groups` best take part: a group's score is its largest s
    (+ selection_bias) or the sum of its `group_best` largest. `normalise` divides the weights by (their sum + eps);
    last they are multiplied with `scale`.
    """

    n_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "logits", "sparsemixer"] = "softmax"
    normalise: bool = False
    eps: float = 0.0
    scale: float = 1.0
    bias: bool = False
    selection_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """down(act(gate(x)) · up(x)) when gated, else down(act(up(x))).

    With a router this is one expert of `width`, and the result is Σ weight · expert(x) over the chosen ones and over
    `shared` further experts, which every token gets with weight 1, or σ(their own row of the router · x) when
    `shared_gate`. A shared expert of several times the width is so many experts side by side: the sum is the same.
    `shared_width` is that of all of them together; where it is less than shared · width, the last one ends in zeros.
    """

    width: int
    activation: Activation
    gated: bool = True
    bias: bool = False
    router: RouterSpec | None = None
    shared: int = 0
    shared_gate: bool = False
    shared_width: int = 0

    @property
    def experts(self) -> int:
        """Routed and shared ones; 1 without a router."""
        return 1 if self.router is None else self.router.n_experts + self.shared

    @property
    def active(self) -> int:
        """Experts that a token gets."""
        return 1 if self.router is None else self.router.top_k + self.shared


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x += s · post(mixer(norm(x))); x += s · post(feed_forward(norm(x))); a norm may be absent.

    Whatever the mixer, its norms are called attn_norm and attn_post_norm.
    """

    mixer: AttentionSpec | ConvolutionSpec
    feed_forward: FeedForwardSpec
    attn_norm: NormSpec | None
    ff_norm: NormSpec | None
    attn_post_norm: NormSpec | None = None
    ff_post_norm: NormSpec | None = None
    residual_scale: float = 1.0

    @property
    def attention(self) -> AttentionSpec | None:
        return self.mixer if isinstance(self.mixer, AttentionSpec) else None

    @property
    def convolution(self) -> ConvolutionSpec | None:
        return self.mixer if isinstance(self.mixer, ConvolutionSpec) else None

    @property
    def window(self) -> int | None:
        """Positions that a token sees, its own included; None: all before it."""
        return self.mixer.kernel if isinstance(self.mixer, ConvolutionSpec) else self.mixer.window


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

    @property
    def attentions(self) -> list[AttentionSpec]:
        """Those of the layers that have attention."""
        return [layer.attention for layer in self.layers if layer.attention is not None]


def _norm_tensors(name: str, norm: NormSpec | None, width: int) -> dict[str, tuple[int, ...]]:
    if norm is None:
        return {}
    named = {f"{name}.weight": (width,)}
    return named | {f"{name}.bias": (width,)} if norm.bias else named


def _attention_tensors(p: str, attention: AttentionSpec, D: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {p + "qkv": (attention.qkv_rows, D)}
    if attention.qkv_bias:
        shapes[p + "qkv.bias"] = (attention.qkv_rows,)
    if (latent := attention.latent) is not None:
        if latent.q_rank:
            shapes[p + "q_a_norm.weight"] = (latent.q_rank,)
            shapes[p + "q_b"] = (attention.q_rows, latent.q_rank)
        shapes[p + "kv_norm.weight"] = (latent.rank,)
        shapes[p + "k_up"] = (attention.n_heads, latent.rank, latent.nope)
        shapes[p + "v_up"] = (attention.n_heads, latent.v_dim, latent.rank)
    if attention.sinks:
        shapes[p + "sinks"] = (attention.n_heads,)
    if attention.qk_norm is not None:
        heads = (attention.n_heads, attention.n_kv_heads) if attention.qk_norm_full else (1, 1)
        for which, n in zip("qk", heads, strict=True):
            shapes |= _norm_tensors(f"{p}{which}_norm", attention.qk_norm, n * attention.k_dim)
    shapes[p + "o"] = (D, attention.out_width)
    if attention.o_bias:
        shapes[p + "o.bias"] = (D,)
    return shapes


def _convolution_tensors(p: str, convolution: ConvolutionSpec, D: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in (("conv_in", (3 * D, D)), ("conv", (D, convolution.kernel)), ("conv_out", (D, D))):
        shapes[p + name + (".weight" if name == "conv" else "")] = shape
        if convolution.bias:
            shapes[f"{p}{name}.bias"] = shape[:1]
    return shapes


def layer_tensors(spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of one layer."""
    layer, ff, D = spec.layers[index], spec.layers[index].feed_forward, spec.hidden
    p = f"layers.{index}."
    shapes = _norm_tensors(p + "attn_norm", layer.attn_norm, D)
    if isinstance(layer.mixer, ConvolutionSpec):
        shapes |= _convolution_tensors(p, layer.mixer, D)
    else:
        shapes |= _attention_tensors(p, layer.mixer, D)
    shapes |= _norm_tensors(p + "attn_post_norm", layer.attn_post_norm, D)
    shapes |= _norm_tensors(p + "ff_norm", layer.ff_norm, D)
    bank: tuple[int, ...] = ()
    ff_p = p
    if (router := ff.router) is not None:
        shapes[p + "router"] = (router.n_experts + int(ff.shared_gate), D)
        if router.bias:
            shapes[p + "router.bias"] = (router.n_experts,)
        if router.selection_bias:
            shapes[p + "router.selection_bias"] = (router.n_experts,)
        bank, ff_p = (ff.experts,), p + "experts."
    up, rows = (ff_p + "gate_up", 2 * ff.width) if ff.gated else (ff_p + "up", ff.width)
    shapes[up] = (*bank, rows, D)
    shapes[ff_p + "down"] = (*bank, D, ff.width)
    if ff.bias:
        shapes[up + ".bias"] = (*bank, rows)
        shapes[ff_p + "down.bias"] = (*bank, D)
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


MATRICES = {
    "embed", "qkv", "q_b", "k_up", "v_up", "o", "conv_in", "conv_out", "router", "gate_up", "up", "down", "head",
}  # fmt: skip


def is_matrix(name: str) -> bool:
    """Whether a tensor of `tensors(spec)` is multiplied with activations, and so is packed and quantized."""
    return name.rsplit(".", 1)[-1] in MATRICES


def has_rows(name: str) -> bool:
    """Whether a tensor of `tensors(spec)` is read in rows of its last axis; the others are read as one vector."""
    return is_matrix(name) or name == "positions" or name.endswith(".conv.weight")


def bank_of(name: str) -> str | None:
    """The bank whose experts have a matrix of this name (layers.N.experts of layers.N.experts.down), or None."""
    bank = name.rsplit(".", 1)[0]
    return bank if bank.endswith(".experts") and is_matrix(name) else None


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token's logits depend on: of banks, those of its experts; of an untied embedding, its row."""
    total = 0
    for name, shape in tensors(spec).items():
        count = prod(shape)
        if ".experts." in name:
            ff = spec.layers[int(name.split(".")[1])].feed_forward
            count = count // ff.experts * ff.active
        elif name == "embed" and not spec.tied:
            count = spec.hidden
        total += count
    return total
