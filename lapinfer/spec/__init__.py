"""What a model IS: sizes and options, no weights.

Letters used for shapes everywhere: T tokens, D hidden width, H query heads, K key/value heads,
F feed-forward width, E experts, A experts a token gets, V vocabulary, L layers.

A family turns a config.json into a `ModelSpec`; the plan builder turns a `ModelSpec` and packed weights
into ops. lapinfer.tensors names the weights that a model of a spec has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lapinfer.errors import InputError
from lapinfer.spec.mixers import STATES as STATES
from lapinfer.spec.mixers import AttentionSpec as AttentionSpec
from lapinfer.spec.mixers import ConvolutionSpec as ConvolutionSpec
from lapinfer.spec.mixers import GrowthSpec as GrowthSpec
from lapinfer.spec.mixers import LatentSpec as LatentSpec
from lapinfer.spec.mixers import Mixer as Mixer
from lapinfer.spec.mixers import NormSpec as NormSpec
from lapinfer.spec.mixers import RecurrenceSpec as RecurrenceSpec
from lapinfer.spec.mixers import RopeSpec as RopeSpec
from lapinfer.spec.mixers import Rule as Rule

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai", "xielu"]
"""`gelu` is the exact one (erf), `gelu_tanh` its tanh approximation, `relu2` the square of relu.

`swiglu_oai` needs a gate: (up + 1) · gate · σ(1.702 · gate), with gate ≤ 7 and −7 ≤ up ≤ 7. `xielu` (arXiv 2411.13010)
has no gate, and four numbers (p, n, β, ε) of each layer: with α = ln(1 + eᵖ) it is α · x² + β · x above 0, and with
α = β + ln(1 + eⁿ) it is α · (e^min(x, ε) − 1 − x) + β · x up to 0.
"""


Score = Literal["softmax", "sigmoid", "logits", "sparsemixer"]
"""How a router scores experts: see RouterSpec."""


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
    (+ selection_bias) or the sum of its `group_best` largest. `normalise` divides the weights by (their sum + eps), or
    by `least_sum` where that is more; last they are multiplied with `scale`.
    """

    n_experts: int
    top_k: int
    score: Score = "softmax"
    normalise: bool = False
    eps: float = 0.0
    scale: float = 1.0
    bias: bool = False
    selection_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    jitter: float = 0.0
    least_sum: float = 0.0


@dataclass(frozen=True, slots=True)
class TreeSpec:
    """Binary trees that each choose one leaf (fast feedforward networks, arXiv 2308.14711); leaves are experts.

    A node's logit is w · x (+ b), or v · act(W · x + b) + c when its `node_width` is more than 1; below zero a token
    goes to the left child. Nodes are numbered level by level, children of i are 2i + 1 and 2i + 2; tree by tree, and
    so are the leaves. The outputs of all `trees` are summed. `mix`: leaves weigh σ(k), and shared experts (the master
    leaf of arXiv 2405.16836) 1 − σ(k), k learned. `neurons` (UltraFastBERT, arXiv 2311.10770): the nodes themselves,
    depth + 1 levels of them, are experts of width 1; a token gets those on its path, and goes right above zero.
    """

    depth: int
    trees: int = 1
    node_width: int = 1
    node_bias: bool = False
    node_activation: Activation = "relu"
    neurons: bool = False
    mix: bool = False

    @property
    def nodes(self) -> int:
        """Of one tree, without its leaves."""
        return (2 << self.depth if self.neurons else 1 << self.depth) - 1

    @property
    def n_experts(self) -> int:
        """Leaves of all trees, or neurons."""
        return self.trees * (self.nodes if self.neurons else 1 << self.depth)

    @property
    def top_k(self) -> int:
        """Leaves, or neurons, that a token gets."""
        return self.trees * (self.depth + 1 if self.neurons else 1)

    @property
    def path(self) -> int:
        """Nodes whose logits a token needs, beside its experts'."""
        return 0 if self.neurons else self.trees * self.depth


NARROW = 32
"""Leaves that are less wide are kept neuron by neuron: in blocks of 16 rows and 32 columns most of them would be
padding."""


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """down(act(gate(x)) · up(x)) when gated, else down(act(up(x))).

    With a router this is one expert of `width`, and the result is Σ weight · expert(x) over the chosen ones and over
    `shared` further experts, which every token gets with weight 1, or σ(their own row of the router · x) when
    `shared_gate`. A shared expert of several times the width is so many experts side by side: the sum is the same.
    `shared_width` is that of all of them together; where it is less than shared · width, the last one ends in zeros.
    `by_neuron`: keep leaves of any width neuron by neuron.
    """

    width: int
    activation: Activation
    gated: bool = True
    bias: bool = False
    router: RouterSpec | TreeSpec | None = None
    shared: int = 0
    shared_gate: bool = False
    shared_width: int = 0
    by_neuron: bool = False

    @property
    def experts(self) -> int:
        """Routed and shared ones; 1 without a router."""
        return 1 if self.router is None else self.router.n_experts + self.shared

    @property
    def active(self) -> int:
        """Experts that a token gets."""
        return 1 if self.router is None else self.router.top_k + self.shared

    @property
    def narrow(self) -> bool:
        """Whether its experts are leaves that are kept neuron by neuron."""
        return isinstance(self.router, TreeSpec) and (self.by_neuron or self.width < NARROW)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x += s · post(mixer(norm(x))); x += s · post(feed_forward(norm(x))); a norm may be absent.

    Whatever the mixer, its norms are called attn_norm and attn_post_norm. `parallel`: both halves read the same x,
    x += s · (attention(norm(x)) + feed_forward(norm(x))); without an ff_norm they share one. There are no norms after
    them.
    """

    mixer: Mixer
    feed_forward: FeedForwardSpec
    attn_norm: NormSpec | None
    ff_norm: NormSpec | None
    attn_post_norm: NormSpec | None = None
    ff_post_norm: NormSpec | None = None
    residual_scale: float = 1.0
    parallel: bool = False

    @property
    def attention(self) -> AttentionSpec | None:
        return self.mixer if isinstance(self.mixer, AttentionSpec) else None

    @property
    def convolution(self) -> ConvolutionSpec | None:
        return self.mixer if isinstance(self.mixer, ConvolutionSpec) else None

    @property
    def recurrence(self) -> RecurrenceSpec | None:
        return self.mixer if isinstance(self.mixer, RecurrenceSpec) else None

    @property
    def seen(self) -> int | None:
        """Positions of which a token reads what the layer keeps of each, its own included; None: all before it."""
        return self.window if self.recurrence is None else self.recurrence.kernel

    @property
    def window(self) -> int | None:
        """Positions that a layer can be taken back over, and one more; None: all.

        So many of the last ones it keeps, of a recurrence the states after them.
        """
        match self.mixer:
            case RecurrenceSpec():
                return STATES
            case ConvolutionSpec(kernel=kernel):
                return kernel
            case AttentionSpec(window=window):
                return window


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder: x = embed[token] · embed_scale (+ positions[pos]), perhaps normed; layers, norm, head.

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
    embed_norm: NormSpec | None = None

    @property
    def attentions(self) -> list[AttentionSpec]:
        """Those of the layers that have attention."""
        return [layer.attention for layer in self.layers if layer.attention is not None]


def with_top_k(spec: ModelSpec, top_k: int) -> ModelSpec:
    """The same model with `top_k` routed experts per token; InputError if its layers cannot have that many."""
    routers = [r for layer in spec.layers if isinstance(r := layer.feed_forward.router, RouterSpec)]
    if not routers:
        raise InputError("experts: this model has no routed layers (a leaf of a tree is one, and always one)")
    most = min(router.n_experts // router.groups * router.top_groups for router in routers)
    if any(router.score == "sparsemixer" for router in routers):
        raise InputError("experts: this model's router (sparsemixer) chooses two, and knows no other number")
    if not 1 <= top_k <= most:
        raise InputError(f"experts: expected a number from 1 to {most}, got {top_k}")

    def with_fewer(ff: FeedForwardSpec) -> FeedForwardSpec:
        return replace(ff, router=replace(ff.router, top_k=top_k)) if isinstance(ff.router, RouterSpec) else ff

    return replace(
        spec, layers=tuple(replace(layer, feed_forward=with_fewer(layer.feed_forward)) for layer in spec.layers)
    )
