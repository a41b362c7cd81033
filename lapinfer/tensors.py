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

With latent attention (r = rank, n = nope, p = rotated width), instead of the usual qkv and its norms:

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
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.blocks import interleaved_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import row_bytes
from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RouterSpec,
    TreeSpec,
)

Part = Literal["embedding", "attention", "convolution", "kv", "router", "experts", "feed-forward", "head"]
"""What bytes are accounted as. `kv` is what goes from position to position: keys and values; a convolution's kernel
and the inputs that it sees."""

Role = Literal["matrix", "router", "norm", "bias", "table", "scalars"]
"""matrix: multiplied with activations, so packed and quantized. router: a matrix that decides which experts are read,
never quantized. The others stay float32; a table is read in rows."""

Packing = Literal["blocks", "groups", "gate_up", "rows"]
"""How a matrix is packed: in blocks of 16 rows; padded to whole groups of 32 rows, where its results become
activations; the same with gate and up alternating in blocks of 16; row by row, where single rows are read."""

Reads = Literal["step", "token", "wanted", "logits", "best", "expert", "node", "load"]
"""How much of a tensor a step reads: all of it; a row for each token; all if logits or hidden states are wanted; all if
logits are; all if only the best of them are; the share of each expert that is chosen; of each node that a token meets;
nothing, because it was read when the model was loaded."""

Inputs = Literal["own", "router", "expert"]
"""What a matrix multiplies: inputs of its own, those of its layer's router, or of each expert the tokens it gets."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight: `module` and `suffix` are its name within its layer (−1: of no layer).

    packing: of matrices alone. bank: the name of the bank whose experts have this matrix. inputs: None where what
    the matrix multiplies is not measured; inputs_vary: whether random tokens give inputs unlike those of text.
    """

    layer: int
    module: str
    shape: tuple[int, ...]
    part: Part
    role: Role
    suffix: Literal["", ".weight", ".bias", ".selection_bias", ".norms"] = ""
    packing: Packing | None = None
    reads: Reads = "step"
    bank: str | None = None
    inputs: Inputs | None = None
    inputs_vary: bool = False

    @property
    def label(self) -> str:
        """The name within its layer; of a matrix, also that of the op that multiplies it."""
        return self.module + self.suffix

    @property
    def name(self) -> str:
        return f"{layer_prefix(self.layer)}{self.label}"

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is packed in a weight format; all else is float32."""
        return self.packing is not None

    @property
    def columns(self) -> int:
        """Numbers of a row as it is stored in a checkpoint; 1 for vectors, and for a bank's biases."""
        return self.shape[-1] if len(self.shape) > 1 and self.role != "bias" else 1

    @property
    def rows(self) -> int:
        """Rows of all its matrices together, as they are stored in a checkpoint."""
        return self.size // self.columns

    @property
    def copies(self) -> int:
        """How many matrices [R, C] it has."""
        return prod(self.shape[:-2])

    @property
    def row_order(self) -> np.ndarray:
        """Which row of a matrix each packed row holds; −1: none, zeros."""
        rows = self.shape[-2]
        match self.packing:
            case "gate_up":
                return interleaved_rows(rows // 2)
            case "rows":
                return np.arange(rows)
            case packing:
                order = np.arange(_padded(rows, GROUP if packing == "groups" else ROWS))
                return np.where(order < rows, order, -1)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """The shape with the rows that a packed matrix has."""
        if self.packing in (None, "rows"):
            return self.shape
        rows = self.shape[-2]
        match self.packing:
            case "gate_up":
                rows = 2 * _padded(rows // 2, GROUP)
            case "groups":
                rows = _padded(rows, GROUP)
            case _:
                rows = _padded(rows, ROWS)
        return (*self.shape[:-2], rows, self.shape[-1])

    def nbytes(self, format: str | None) -> int:
        """Bytes in a weight format; None: float32 as it is."""
        if self.packing is None or format is None:
            return 4 * self.size
        *copies, rows, columns = self.packed_shape
        if self.packing == "rows":
            return prod(copies) * rows * row_bytes(format, columns)
        return prod(copies) * (rows // ROWS) * FORMATS[format].row_block_bytes(columns)


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"layers.{layer}." if layer >= 0 else ""


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _norm(layer: int, module: str, norm: NormSpec | None, width: int, part: Part) -> Iterator[Tensor]:
    if norm is None:
        return
    reads = "wanted" if part == "head" else "step"
    if norm.weight:
        yield Tensor(layer, module, (width,), part, "norm", ".weight", reads=reads)
    if norm.bias:
        yield Tensor(layer, module, (width,), part, "norm", ".bias", reads=reads)


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


def _attention_tensors(layer: int, attention: AttentionSpec, D: int) -> Iterator[Tensor]:
    def matrix(module: str, *shape: int, inputs: Inputs | None = "own", inputs_vary: bool = False) -> Tensor:
        return Tensor(
            layer, module, shape, "attention", "matrix", packing="blocks", inputs=inputs, inputs_vary=inputs_vary
        )

    def bias(module: str, rows: int) -> Tensor:
        return Tensor(layer, module, (rows,), "attention", "bias", ".bias")

    yield matrix("qkv", attention.qkv_rows, D)
    if attention.qkv_bias:
        yield bias("qkv", attention.qkv_rows)
    if (latent := attention.latent) is not None:
        if latent.q_rank:
            yield from _norm(layer, "q_a_norm", latent.norm, latent.q_rank, "attention")
            yield matrix("q_b", attention.q_rows, latent.q_rank)
        yield from _norm(layer, "kv_norm", latent.norm, latent.rank, "attention")
        # A head's own matrices are packed along the other axis than their inputs are measured.
        yield matrix("k_up", attention.n_heads, latent.rank, latent.nope, inputs=None)
        yield matrix("v_up", attention.n_heads, latent.v_dim, latent.rank, inputs=None)
    if attention.sinks:
        yield Tensor(layer, "sinks", (attention.n_heads,), "attention", "scalars")
    if attention.qk_norm is not None:
        several = attention.qk_norm_full or attention.qk_norm_each
        heads = (attention.n_heads, attention.n_kv_heads) if several else (1, 1)
        for module, n in zip(("q_norm", "k_norm"), heads, strict=True):
            yield from _norm(layer, module, attention.qk_norm, n * attention.k_dim, "attention")
    yield matrix("o", D, attention.out_width, inputs_vary=True)
    if attention.o_bias:
        yield bias("o", D)


def _convolution_tensors(layer: int, convolution: ConvolutionSpec, D: int) -> Iterator[Tensor]:
    tensors = (
        Tensor(layer, "conv_in", (3 * D, D), "convolution", "matrix", packing="blocks", inputs="own"),
        Tensor(layer, "conv", (D, convolution.kernel), "kv", "table", ".weight"),
        Tensor(layer, "conv_out", (D, D), "convolution", "matrix", packing="blocks", inputs="own"),
    )
    for tensor in tensors:
        yield tensor
        if convolution.bias:
            yield Tensor(layer, tensor.module, tensor.shape[:1], tensor.part, "bias", ".bias")


def _layer_tensors(index: int, layer: LayerSpec, D: int) -> Iterator[Tensor]:
    ff = layer.feed_forward
    mixer: Part = "convolution" if isinstance(layer.mixer, ConvolutionSpec) else "attention"
    yield from _norm(index, "attn_norm", layer.attn_norm, D, mixer)
    if isinstance(layer.mixer, ConvolutionSpec):
        yield from _convolution_tensors(index, layer.mixer, D)
    else:
        yield from _attention_tensors(index, layer.mixer, D)
    yield from _norm(index, "attn_post_norm", layer.attn_post_norm, D, mixer)
    yield from _norm(index, "ff_norm", layer.ff_norm, D, "feed-forward" if ff.router is None else "router")
    yield from router_tensors(index, ff, D)
    yield from feed_forward_tensors(index, ff, D, D)
    yield from _norm(index, "ff_post_norm", layer.ff_post_norm, D, "feed-forward")


def _model_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    V, D = spec.vocab, spec.hidden
    yield Tensor(-1, "embed", (V, D), "embedding", "matrix", packing="blocks", reads="token", inputs="own")
    if spec.positions:
        yield Tensor(-1, "positions", (spec.positions, D), "embedding", "table", reads="token")
    yield from _norm(-1, "embed_norm", spec.embed_norm, D, "embedding")
    for i, layer in enumerate(spec.layers):
        yield from _layer_tensors(i, layer, D)
    yield from _norm(-1, "norm", spec.norm, D, "head")
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
