"""Which weights a model has: names and shapes, from its spec (letters: lapinfer.spec).

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

With trees of N nodes of n neurons instead of the router; leaves are experts, and narrow ones kept neuron by neuron:

    layers.N.nodes [N · n, D]   .nodes.bias [N · n]   .node_out [N, n]   .node_out.bias [N] (n > 1)   .mix [1]
    layers.N.leaves.inward [E, (2)F, D], gate rows first   layers.N.leaves.outward [E, F, D]   with .bias [E, …]
"""

from __future__ import annotations

from math import prod

from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    RouterSpec,
    TreeSpec,
)


def _norm_tensors(name: str, norm: NormSpec | None, width: int) -> dict[str, tuple[int, ...]]:
    if norm is None:
        return {}
    named = {f"{name}.weight": (width,)}
    return named | {f"{name}.bias": (width,)} if norm.bias else named


def router_tensors(p: str, ff: FeedForwardSpec, D: int) -> dict[str, tuple[int, ...]]:
    """What a layer chooses its experts by."""
    shapes: dict[str, tuple[int, ...]] = {}
    match ff.router:
        case RouterSpec(n_experts=E) as router:
            shapes[p + "router"] = (E + int(ff.shared_gate), D)
            if router.bias:
                shapes[p + "router.bias"] = (E,)
            if router.selection_bias:
                shapes[p + "router.selection_bias"] = (E,)
        case TreeSpec(node_width=n, neurons=False) as tree:
            N = tree.trees * tree.nodes
            if N:
                shapes[p + "nodes"] = (N * n, D)
            if N and tree.node_bias:
                shapes[p + "nodes.bias"] = (N * n,)
            if N and n > 1:
                shapes[p + "node_out"] = (N, n)
                shapes[p + "node_out.bias"] = (N,)
            if tree.mix:
                shapes[p + "mix"] = (1,)
        case _:
            pass
    return shapes


def feed_forward_tensors(p: str, ff: FeedForwardSpec, D: int, out: int) -> dict[str, tuple[int, ...]]:
    """Names, after `p`, and shapes of a feed-forward's weights, from D to `out` numbers (D in a model)."""
    F, E, rows = ff.width, ff.experts, (1 + ff.gated) * ff.width
    if ff.narrow:
        first, last = (p + "leaves.inward", (E, rows, D)), (p + "leaves.outward", (E, F, out))
        biases = (E, rows), (E, out)
    else:
        bank = () if ff.router is None else (E,)
        p += "" if ff.router is None else "experts."
        first, last = (p + ("gate_up" if ff.gated else "up"), (*bank, rows, D)), (p + "down", (*bank, out, F))
        biases = (*bank, rows), (*bank, out)
    shapes: dict[str, tuple[int, ...]] = dict((first, last))
    if ff.bias:
        shapes[first[0] + ".bias"] = biases[0]
    if ff.bias and not (isinstance(ff.router, TreeSpec) and ff.router.neurons):  # each neuron has but one
        shapes[last[0] + ".bias"] = biases[1]
    return shapes


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
    shapes |= router_tensors(p, ff, D) | feed_forward_tensors(p, ff, D, D)
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


ROW_BY_ROW = {"nodes", "inward", "outward"}
MATRICES = {
    "embed", "qkv", "q_b", "k_up", "v_up", "o", "conv_in", "conv_out", "router", "gate_up", "up", "down", "head",
    *ROW_BY_ROW,
}  # fmt: skip


def is_matrix(name: str) -> bool:
    """Whether a tensor of `tensors(spec)` is multiplied with activations, and so is packed and quantized."""
    return name.rsplit(".", 1)[-1] in MATRICES


def has_rows(name: str) -> bool:
    """Whether a tensor of `tensors(spec)` is read in rows of its last axis; the others are read as one vector."""
    return is_matrix(name) or name == "positions" or name.endswith((".conv.weight", ".node_out"))


def is_row_by_row(name: str) -> bool:
    """Whether a matrix is packed row by row: what is read of it are single rows, not blocks of them."""
    return name.rsplit(".", 1)[-1] in ROW_BY_ROW


def is_router(name: str) -> bool:
    """Whether a matrix decides which experts are read, and so is never quantized."""
    return name.rsplit(".", 1)[-1] in ("router", "nodes")


def bank_of(name: str) -> str | None:
    """The bank whose experts have a matrix of this name (layers.N.experts of layers.N.experts.down), or None."""
    bank = name.rsplit(".", 1)[0]
    return bank if bank.rsplit(".", 1)[-1] in ("experts", "leaves") and is_matrix(name) else None


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that a token's logits depend on: of banks, those of its experts; of an untied embedding, its row."""
    total = 0
    for name, shape in tensors(spec).items():
        count = prod(shape)
        part = name.split(".")[2] if name.startswith("layers.") else name
        if part in ("experts", "leaves"):
            ff = spec.layers[int(name.split(".")[1])].feed_forward
            count = count // ff.experts * ff.active
        elif part in ("nodes", "node_out"):
            tree = spec.layers[int(name.split(".")[1])].feed_forward.router
            assert isinstance(tree, TreeSpec)
            count = count // (tree.trees * tree.nodes) * tree.path
        elif name == "embed" and not spec.tied:
            count = spec.hidden
        total += count
    return total
