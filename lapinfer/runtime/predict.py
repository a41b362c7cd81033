"""Bytes that a step will touch, from the spec and the formats of its matrices alone: a sum of terms.

Written apart from the plan and its meter, so that each checks the other: they agree to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from lapinfer.quant import ROWS
from lapinfer.quant.choice import expected_share
from lapinfer.runtime.chance import expected_distinct
from lapinfer.runtime.kv import KVKinds, bytes_per_position, bytes_per_slot, of_layer
from lapinfer.spec import FeedForwardSpec, LayerSpec, ModelSpec, RouterSpec, TreeSpec
from lapinfer.tensors import COARSE, Part, Tensor, mixer_part, tensors

PARTS: tuple[Part, ...] = get_args(Part)
MIXERS: tuple[Part, ...] = ("attention", "convolution", "recurrence")

By = Literal[
    "step",
    "wanted",
    "logits",
    "head",
    "best",
    "masked",
    "token",
    "kept",
    "position",
    "slot",
    "expert",
    "block",
    "each",
    "node",
]
"""How often a term's bytes are read by a step, and are stored:

step       once; stored once: what every step reads
wanted     once where logits, or hidden states alone, are wanted; stored once
logits     once where logits are wanted; stored once
head       once where all logits are wanted, else some row blocks of it; stored once
best       once where only the best logits are wanted; stored once
masked     once where logits are wanted; never stored: it is made when the model is loaded
token      once for each token; never stored: a row of a table, which is counted in full elsewhere
kept       never; stored once: what is looked up in, or read when the model is loaded
position   once for each position that the tokens see; stored as many times
slot       once for each slot that has tokens; stored as many times
expert     once for each expert that is chosen; all are stored
block      16 rows of a router, which has one for each expert and `extra` ones; stored as many times
each       once for each expert there is; stored as many times
node       once for each node that the tokens meet; all are stored
"""


@dataclass(frozen=True, slots=True)
class Term:
    """Bytes of a part, and how often they are read. packed: they change with the bits per weight.

    layer: −1 for none, and for several that are added up. window: of positions, None for all. experts, top_k: of the
    layer; trees, depth: 0 trees where experts are no leaves; neurons: experts are the nodes of their trees.
    """

    part: Part
    by: By
    bytes: int
    packed: bool = False
    layer: int = -1
    window: int | None = None
    experts: int = 0
    top_k: int = 0
    extra: int = 0
    trees: int = 0
    depth: int = 0
    neurons: bool = False


def byte_terms(spec: ModelSpec, formats: Mapping[str, str], kv: KVKinds) -> Iterator[Term]:
    """What all bytes of a model are made of; formats: those of its matrices."""
    for tensor in tensors(spec, coarse=COARSE in formats).values():
        yield from _of_tensor(tensor, spec, formats)
    for i, layer in enumerate(spec.layers):
        kept = bytes_per_position(layer, spec.hidden, of_layer(kv, i))
        yield Term("kv", "position", kept, layer=i, window=layer.seen)
        if state := bytes_per_slot(layer):
            yield Term("kv", "slot", state, layer=i)
    if not spec.head_bias and spec.vocab % ROWS:  # keeps the last block's padding from being the likeliest token
        yield Term("head", "masked", 4 * spec.vocab)


def _of_tensor(tensor: Tensor, spec: ModelSpec, formats: Mapping[str, str]) -> Iterator[Term]:
    format = formats.get(tensor.name)
    term = Term(tensor.part, "step", tensor.nbytes(format), tensor.is_matrix and tensor.role != "router", tensor.layer)
    match tensor.reads:
        case "wanted":
            yield replace(term, by="wanted")
        case "logits":
            yield replace(term, by="head" if tensor.is_matrix else "logits")
        case "best":
            yield replace(term, by="best")
        case "token":
            row = replace(tensor, shape=(ROWS, tensor.shape[-1])).nbytes(format) // ROWS
            yield replace(term, by="token", bytes=row)
            tied_head = spec.tied and tensor.is_matrix
            yield replace(term, by="head", part="head") if tied_head else replace(term, by="kept")
        case "load":
            yield replace(term, by="kept")
        case "expert" | "node":
            yield from _of_banks(tensor, term, spec.layers[tensor.layer].feed_forward)
        case "step":
            ff = spec.layers[tensor.layer].feed_forward
            if tensor.module == "router" and isinstance(ff.router, RouterSpec):
                yield from _of_router(tensor, term, ff.router, format)
            else:
                yield term


def _of_banks(tensor: Tensor, term: Term, ff: FeedForwardSpec) -> Iterator[Term]:
    """An expert's share, or a node's."""
    router = ff.router
    assert router is not None
    routed = replace(term, experts=router.n_experts, top_k=router.top_k)
    if isinstance(router, TreeSpec):
        routed = replace(routed, trees=router.trees, depth=router.depth, neurons=router.neurons)
        if tensor.reads == "node":
            yield replace(routed, by="node", bytes=term.bytes // (router.trees * router.nodes))
            return
    one = term.bytes // ff.experts
    yield replace(routed, by="expert", bytes=one)
    if ff.shared:
        yield replace(term, bytes=ff.shared * one)


def _of_router(tensor: Tensor, term: Term, router: RouterSpec, format: str | None) -> Iterator[Term]:
    routed = replace(term, experts=router.n_experts, top_k=router.top_k)
    if tensor.is_matrix:
        block = replace(tensor, shape=(ROWS, tensor.shape[-1])).nbytes(format)
        yield replace(routed, by="block", bytes=block, extra=tensor.shape[0] - router.n_experts)
    else:
        yield replace(routed, by="each", bytes=term.bytes // router.n_experts)


def predict_bytes(
    spec: ModelSpec, formats: Mapping[str, str], kv: KVKinds, slot: Sequence[int] | np.ndarray,
    pos: Sequence[int] | np.ndarray, wanted: int, distinct: Mapping[int, int] | None = None,
    nodes: Mapping[int, int] | None = None, best_blocks: int | None = None, hidden: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Bytes touched by each part in one step: tokens at (slot[i], pos[i]), of which `wanted` get logits.

    formats: the format of each matrix by our tensor names. distinct: how many experts of a layer are read, by layer,
    shared ones included; nodes: how many nodes of its trees. Those of one token are known; those of several are else
    what is expected of chance. best_blocks: how many row blocks of the head are read for the best logits; None for all
    logits. hidden: hidden states are wanted, and no logits.
    """
    distinct, nodes, T = distinct or {}, nodes or {}, len(pos)
    logits = 0 if hidden else wanted

    def times(term: Term) -> int:
        match term.by:
            case "step":
                return 1
            case "wanted":
                return int(wanted > 0)
            case "logits" | "masked":
                return int(logits > 0)
            case "head":
                return int(logits > 0 and best_blocks is None)
            case "best":
                return int(best_blocks is not None)
            case "token":
                return T
            case "kept":
                return 0
            case "position":
                return positions_read(spec.layers[term.layer], slot, pos)
            case "slot":
                return len({int(s) for s in slot})
            case "expert":
                layer = spec.layers[term.layer]
                return distinct.get(term.layer, expected_experts(layer, T)) - layer.feed_forward.shared
            case "block":
                return -(-(term.experts + term.extra) // ROWS)
            case "each":
                return term.experts
            case "node":
                return nodes.get(term.layer, expected_nodes(spec.layers[term.layer], T))

    parts: dict[str, int] = dict.fromkeys(parts_of(spec), 0)
    for term in byte_terms(spec, formats, kv):
        parts[term.part] += times(term) * term.bytes
        if term.by == "head" and best_blocks is not None:
            parts[term.part] += best_blocks * (term.bytes // -(-spec.vocab // ROWS))
    return parts


def positions_read(layer: LayerSpec, slot: Sequence[int] | np.ndarray, pos: Sequence[int] | np.ndarray) -> int:
    """Positions that a layer's tokens see: each once a slot, from the oldest that its window reaches."""
    window = layer.seen
    positions = 0
    for s in {int(s) for s in slot}:
        seen = [int(p) for p, owner in zip(pos, slot, strict=True) if owner == s]
        positions += max(seen) + 1 - (0 if window is None else max(min(seen) + 1 - window, 0))
    return positions


def packed_bytes(spec: ModelSpec, formats: Mapping[str, str]) -> dict[str, int]:
    """Bytes of all weights by format; f32 includes what is not multiplied."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors(spec, coarse=COARSE in formats).items():
        format = formats[name] if tensor.is_matrix else "f32"
        sizes[format] = sizes.get(format, 0) + tensor.nbytes(format)
    return sizes


def expected_experts(layer: LayerSpec, tokens: int) -> int:
    """Experts that a routed layer is expected to read in a step, shared ones included; of one token that is sure."""
    ff = layer.feed_forward
    assert ff.router is not None
    if isinstance(ff.router, TreeSpec) and ff.router.neurons:
        return round(ff.router.trees * _visited(ff.router.depth + 1, tokens))
    return ff.shared + round(float(expected_distinct(ff.router.n_experts, ff.router.top_k, tokens)))


def expected_nodes(layer: LayerSpec, tokens: int) -> int:
    """Nodes of a layer's trees that a step is expected to read; of one token that is sure."""
    tree = layer.feed_forward.router
    return round(tree.trees * _visited(tree.depth, tokens)) if isinstance(tree, TreeSpec) and tree.path else 0


def expected_best_blocks(spec: ModelSpec, formats: Mapping[str, str]) -> int | None:
    """Row blocks of the head that a token is expected to read where samplers look at the best logits; None: all."""
    if COARSE not in formats:
        return None
    return round(expected_share(formats[COARSE], spec.vocab) * -(-spec.vocab // ROWS))


def _visited(levels: int, tokens: int) -> float:
    """Different nodes that tokens are expected to meet in so many levels of a tree, if they go either way alike."""
    return sum(float(expected_distinct(1 << level, 1, tokens)) for level in range(levels))


def expected_reads(spec: ModelSpec, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Experts and nodes [routed layers] that a step is expected to read, before it has run."""
    routed = [layer for layer in spec.layers if layer.feed_forward.router is not None]
    experts = [expected_experts(layer, tokens) for layer in routed]
    return np.array(experts, np.int64), np.array([expected_nodes(layer, tokens) for layer in routed], np.int64)


def parts_of(spec: ModelSpec) -> list[Part]:
    """The parts of PARTS that a model has."""
    routed = [layer.feed_forward.router is not None for layer in spec.layers]
    plain = not all(routed) or any(layer.ff_post_norm is not None for layer in spec.layers)
    mixers = {mixer_part(layer) for layer in spec.layers}
    has = {part: part in mixers for part in MIXERS}
    has |= {"router": any(routed), "experts": any(routed), "feed-forward": plain}
    return [part for part in PARTS if has.get(part, True)]
