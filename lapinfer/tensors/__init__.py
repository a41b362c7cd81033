"""What a model is made of: a record of every weight, from its spec (letters: lapinfer.spec).

    embed [V, D]   positions [P, D]   embed_norm, norm: .weight [D] and .bias [D]   head [V, D]   head.bias [V]
    head.coarse [V, D]   head.coarse.norms [V]: made when packing, of heads that are read in two passes
    layers.N.attn_norm, .attn_post_norm, .ff_norm, .ff_post_norm: .weight [D] and .bias [D]
    layers.N.qkv [H·k + K·k + K·v, D], query rows first, then key, then value   layers.N.qkv.bias
    layers.N.q_norm.weight, .k_norm.weight   [k] (one head) or [H·k], [K·k] (the full width, or all heads)   with .bias
    layers.N.o [D, H·v]   layers.N.o.bias
    layers.N.sinks [H]
    layers.N.gate_up [2F, D], gate rows first (gated), or layers.N.up [F, D]   with .bias
    layers.N.down [D, F]   layers.N.down.bias   layers.N.xielu [4]

With a convolution instead of attention:

    layers.N.conv_in [3D, D], rows of B, C, x   layers.N.conv.weight [D, kernel]   layers.N.conv_out [D, D]   with .bias

With a recurrence of H heads instead (spec.RecurrenceSpec; C channels, I numbers of all values):

    layers.N.mix_in [C + I + scalars, D], rows of q, k, v, z, a, b   layers.N.mix_out [D, I]   with .bias
    layers.N.conv.weight [C, kernel]   layers.N.conv.bias [C]
    layers.N.decay [H] (A)   layers.N.step [H] (dt)   layers.N.skip [H] (D)
    layers.N.mix_norm.weight [norm_width, or I]

Attention with a gate has its H·v rows in qkv, after the values. With latent attention (r = rank, n = nope, p = rotated
width), instead of the usual qkv and its norms:

    layers.N.qkv [Q + r + p, D], where Q is q_rank, or H·(n + p) when there is none   layers.N.qkv.bias
    layers.N.q_a_norm.weight [q_rank]   layers.N.q_b [H·(n + p), q_rank]   layers.N.kv_norm.weight [r]
    layers.N.k_up [H, r, n]   layers.N.v_up [H, v, r]   layers.N.o [D, H·v]

With a router, E counting the shared experts, which come last:

    layers.N.router [E routed (+ 1: the shared experts' gate), D]   layers.N.router.bias, .router.selection_bias
    layers.N.experts.gate_up [E, 2F, D] or .experts.up [E, F, D]   layers.N.experts.down [E, D, F]   with .bias [E, …]

With trees of N nodes of n neurons instead of the router; leaves are experts, and narrow ones kept neuron by neuron:

    layers.N.nodes [N · n, D]   .nodes.bias [N · n]   .node_out [N, n]   .node_out.bias [N] (n > 1)   .mix [1]
    layers.N.leaves.inward [E, (2)F, D], gate rows first   layers.N.leaves.outward [E, F, D]   with .bias [E, …]
"""

from __future__ import annotations

from collections.abc import Iterator

from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    RecurrenceSpec,
    RouterSpec,
    TreeSpec,
)
from lapinfer.tensors.mixers import attention_tensors, convolution_tensors, recurrence_tensors
from lapinfer.tensors.mixers import mixer_part as mixer_part
from lapinfer.tensors.tensor import Inputs as Inputs
from lapinfer.tensors.tensor import Packing as Packing
from lapinfer.tensors.tensor import Part as Part
from lapinfer.tensors.tensor import Reads as Reads
from lapinfer.tensors.tensor import Role as Role
from lapinfer.tensors.tensor import Tensor as Tensor
from lapinfer.tensors.tensor import layer_prefix as layer_prefix
from lapinfer.tensors.tensor import norm_tensors


def router_tensors(layer: int, ff: FeedForwardSpec, D: int) -> Iterator[Tensor]:
    """What a layer chooses its experts by."""
    match ff.router:
        case RouterSpec(n_experts=E) as router:
            yield Tensor(layer, "router", (E + int(ff.shared_gate), D), "router", "router", packing="blocks")
            if router.bias:
                yield Tensor(layer, "router", (E,), "router", "bias", ".bias")
            if router.selection_bias:
                yield Tensor(layer, "router", (E,), "router", "bias", ".selection_bias")
        case TreeSpec(node_width=n, neurons=False) as tree:
            N = tree.trees * tree.nodes
            if N:
                yield Tensor(layer, "nodes", (N * n, D), "router", "router", packing="rows", reads="node")
            if N and tree.node_bias:
                yield Tensor(layer, "nodes", (N * n,), "router", "bias", ".bias", reads="node")
            if N and n > 1:
                yield Tensor(layer, "node_out", (N, n), "router", "table", reads="node")
                yield Tensor(layer, "node_out", (N,), "router", "bias", ".bias", reads="node")
            if tree.mix:
                yield Tensor(layer, "mix", (1,), "router", "scalars", reads="load")
        case _:
            pass


def feed_forward_tensors(layer: int, ff: FeedForwardSpec, D: int, out: int) -> Iterator[Tensor]:
    """A feed-forward's weights, from D to `out` numbers (D in a model)."""
    F, E, rows = ff.width, ff.experts, (1 + ff.gated) * ff.width
    if ff.narrow:
        bank = f"{layer_prefix(layer)}leaves"
        first, last = (
            Tensor(layer, module, (E, *shape), "experts", "matrix", packing="rows", reads="expert", bank=bank)
            for module, shape in (("leaves.inward", (rows, D)), ("leaves.outward", (F, out)))
        )
    elif ff.router is None:
        first = Tensor(
            layer, "gate_up" if ff.gated else "up", (rows, D), "feed-forward", "matrix",
            packing="gate_up" if ff.gated else "groups", inputs="own",
        )  # fmt: skip
        last = Tensor(
            layer, "down", (out, F), "feed-forward", "matrix", packing="blocks", inputs="own", inputs_vary=True
        )
    else:
        bank = f"{layer_prefix(layer)}experts"
        first = Tensor(
            layer, "experts.gate_up" if ff.gated else "experts.up", (E, rows, D), "experts", "matrix",
            packing="gate_up" if ff.gated else "groups", reads="expert", bank=bank, inputs="router",
        )  # fmt: skip
        last = Tensor(
            layer, "experts.down", (E, out, F), "experts", "matrix", packing="blocks", reads="expert", bank=bank,
            inputs="expert", inputs_vary=True,
        )  # fmt: skip
    yield first
    if ff.activation == "xielu":
        yield Tensor(layer, "xielu", (4,), "feed-forward", "scalars", reads="load")
    yield last
    copies = () if ff.router is None else (E,)
    if ff.bias:
        yield Tensor(layer, first.module, (*copies, rows), first.part, "bias", ".bias", reads=first.reads)
    if ff.bias and not (isinstance(ff.router, TreeSpec) and ff.router.neurons):  # each neuron has but one
        yield Tensor(layer, last.module, (*copies, out), last.part, "bias", ".bias", reads=last.reads)


def _layer_tensors(index: int, layer: LayerSpec, D: int) -> Iterator[Tensor]:
    ff, mixer = layer.feed_forward, mixer_part(layer)
    yield from norm_tensors(index, "attn_norm", layer.attn_norm, D, mixer)
    match layer.mixer:
        case AttentionSpec() as attention:
            yield from attention_tensors(index, attention, D)
        case ConvolutionSpec() as convolution:
            yield from convolution_tensors(index, convolution, D)
        case RecurrenceSpec() as recurrence:
            yield from recurrence_tensors(index, recurrence, D)
    yield from norm_tensors(index, "attn_post_norm", layer.attn_post_norm, D, mixer)
    yield from norm_tensors(index, "ff_norm", layer.ff_norm, D, "feed-forward" if ff.router is None else "router")
    yield from router_tensors(index, ff, D)
    yield from feed_forward_tensors(index, ff, D, D)
    yield from norm_tensors(index, "ff_post_norm", layer.ff_post_norm, D, "feed-forward")


def _model_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    V, D = spec.vocab, spec.hidden
    yield Tensor(-1, "embed", (V, D), "embedding", "matrix", packing="blocks", reads="token", inputs="own")
    if spec.positions:
        yield Tensor(-1, "positions", (spec.positions, D), "embedding", "table", reads="token")
    yield from norm_tensors(-1, "embed_norm", spec.embed_norm, D, "embedding")
    for i, layer in enumerate(spec.layers):
        yield from _layer_tensors(i, layer, D)
    yield from norm_tensors(-1, "norm", spec.norm, D, "head")
    if not spec.tied:
        yield Tensor(-1, "head", (V, D), "head", "matrix", packing="blocks", reads="logits", inputs="own")
    if spec.head_bias:
        yield Tensor(-1, "head", (V,), "head", "bias", ".bias", reads="logits")


COARSE = "head.coarse"
"""The coarse copy of the head, from which a step learns which rows may have the best logits."""


def _coarse_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """The copy, and the norms of what it lacks of each row of the packed head."""
    V, D = spec.vocab, spec.hidden
    yield Tensor(-1, COARSE, (V, D), "head", "matrix", packing="blocks", reads="best")
    yield Tensor(-1, COARSE, (V,), "head", "scalars", ".norms", reads="best")


def tensors(spec: ModelSpec, *, coarse: bool = False) -> dict[str, Tensor]:
    """Every weight by its name, in the order in which a step reads them. coarse: with a coarse copy of the head."""
    found = {tensor.name: tensor for tensor in _model_tensors(spec)}
    return found | {tensor.name: tensor for tensor in _coarse_tensors(spec)} if coarse else found


def head_name(spec: ModelSpec) -> str:
    """The name of the matrix that gives the logits."""
    return "embed" if spec.tied else "head"


def parameters(spec: ModelSpec) -> int:
    """How many numbers a model is made of."""
    return sum(tensor.size for tensor in _model_tensors(spec))


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token's logits depend on: of banks, those of its experts; of an untied embedding, its row."""
    total = 0
    for tensor in _model_tensors(spec):
        count = tensor.size
        if tensor.reads == "expert":
            ff = spec.layers[tensor.layer].feed_forward
            count = count // ff.experts * ff.active
        elif tensor.reads == "node":
            tree = spec.layers[tensor.layer].feed_forward.router
            assert isinstance(tree, TreeSpec)
            count = count // (tree.trees * tree.nodes) * tree.path
        elif tensor.reads == "token" and tensor.is_matrix and not spec.tied:
            count = spec.hidden
        total += count
    return total
