"""What a decoded token would touch, and a model take, with other experts, bits or context: a formula of a few terms.

At the model's own settings it gives the bytes of `predict_bytes` and `packed_bytes`. page_whatif.py has the same
formula in JavaScript, line by line; `touched` and `stored` here are what it is tested against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, prod
from typing import Literal

from lapinfer.quant import ROWS
from lapinfer.runtime.kv import KVName, bytes_per_position
from lapinfer.runtime.predict import matrices_bytes, matrix_bytes, part_of, parts_of
from lapinfer.spec import FeedForwardSpec, ModelSpec, RouterSpec, TreeSpec
from lapinfer.tensors import is_matrix, is_router, layer_tensors, tensors

By = Literal["step", "read", "kept", "position", "expert", "block", "each", "node"]
"""How often a term's bytes are touched by a token, and are stored:

step       once, once: what every token reads
read       once, never: a row of the embedding, which is counted as a whole elsewhere
kept       never, once: what lookups are made in
position   once for each position that the token sees, and as many are stored
expert     once for each expert of the token; all are stored
block      16 rows of a router, which has one for each expert and `extra` ones; the same is stored
each       once for each expert there is; the same is stored
node       once for each node on the token's way; all are stored
"""


@dataclass(frozen=True, slots=True)
class Term:
    """So many bytes of a part; packed: they change with the bits a weight.

    window: of positions, None for all. experts, top_k: of the layers that the term is of; trees, depth: 0 trees where
    experts are no leaves; neurons: experts are the nodes of their trees.
    """

    part: str
    by: By
    bytes: int
    packed: bool = False
    window: int | None = None
    experts: int = 0
    top_k: int = 0
    extra: int = 0
    trees: int = 0
    depth: int = 0
    neurons: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the sliders. top_k: None for the model's own; doublings: 2^this times as many experts, of the same size, or
    trees deeper by this; scale: bits a weight by the model's own; context: positions that a token sees."""

    context: int
    top_k: int | None = None
    doublings: int = 0
    scale: float = 1.0


def terms(spec: ModelSpec, formats: Mapping[str, str], kv: KVName) -> list[Term]:
    """Of one token's step; equal ones of several layers are one."""
    found: list[Term] = []
    for i, layer in enumerate(spec.layers):
        ff = layer.feed_forward
        for name, shape in layer_tensors(spec, i).items():
            packed = is_matrix(name) and not is_router(name)
            size = matrices_bytes(name, shape, formats[name]) if is_matrix(name) else 4 * prod(shape)
            found += _of_tensor(name, shape, Term(part_of(name, layer), "step", size, packed), ff, formats)
        position = bytes_per_position(layer, spec.hidden, kv)
        found.append(Term("kv", "position", position, window=layer.window))
    row = matrix_bytes("embed", ROWS, spec.hidden, formats["embed"]) // ROWS
    found.append(Term("embedding", "read", row, True))
    if not spec.tied:
        found.append(Term("embedding", "kept", matrix_bytes("embed", spec.vocab, spec.hidden, formats["embed"]), True))
    if spec.positions:
        found += [Term("embedding", "read", 4 * spec.hidden),
                  Term("embedding", "kept", 4 * spec.hidden * spec.positions)]  # fmt: skip
    head = "embed" if spec.tied else "head"
    found.append(Term("head", "step", matrix_bytes(head, spec.vocab, spec.hidden, formats[head]), True))
    found.append(Term("head", "step", 4 * spec.hidden * (2 if spec.norm.bias else 1)))
    if spec.head_bias or spec.vocab % ROWS:  # without a bias of its own, the last block's padding gets one
        found.append(Term("head", "step" if spec.head_bias else "read", 4 * spec.vocab))
    order = parts_of(spec)
    sums: dict[Term, int] = {}
    for term in found:
        sums[replace(term, bytes=0)] = sums.get(replace(term, bytes=0), 0) + term.bytes
    return sorted((replace(key, bytes=size) for key, size in sums.items()), key=lambda term: order.index(term.part))


def _of_tensor(
    name: str, shape: tuple[int, ...], whole: Term, ff: FeedForwardSpec, formats: Mapping[str, str]
) -> list[Term]:
    """The terms of one tensor of a layer, of which `whole` would be that of a dense one."""
    router, kind = ff.router, name.split(".")[2]
    if router is None or whole.part not in ("router", "experts") or kind == "ff_norm":
        return [whole]
    tree = router if isinstance(router, TreeSpec) else None
    of = replace(
        whole, experts=router.n_experts, top_k=router.top_k, trees=tree.trees if tree else 0,
        depth=tree.depth if tree else 0, neurons=tree is not None and tree.neurons,
    )  # fmt: skip
    if whole.part == "experts":
        one = whole.bytes // shape[0]
        shared = [replace(whole, bytes=ff.shared * one)] if ff.shared else []
        return [replace(of, by="expert", bytes=one), *shared]
    if tree is not None:
        if kind == "mix":
            return [replace(whole, by="kept")]
        return [replace(of, by="node", bytes=whole.bytes // (tree.trees * tree.nodes))]
    assert isinstance(router, RouterSpec)
    if is_matrix(name):
        block = matrix_bytes(name, ROWS, shape[-1], formats[name])
        return [replace(of, by="block", bytes=block, extra=shape[0] - router.n_experts)]
    return [replace(of, by="each", bytes=whole.bytes // shape[0])]


def experts_of(term: Term, s: Settings) -> int:
    """Experts of the term's layers that a model of these settings would have."""
    if term.trees:
        depth = max(term.depth + s.doublings, 0)
        return term.trees * (2 ** (depth + 1) - 1 if term.neurons else 2**depth)
    return max(floor(term.experts * 2.0**s.doublings + 0.5), 1)


def chosen_of(term: Term, s: Settings) -> int:
    """Experts that a token would get: of trees, a leaf each, or the neurons on the way."""
    if term.trees:
        return term.trees * (max(term.depth + s.doublings, 0) + 1 if term.neurons else 1)
    return min(term.top_k if s.top_k is None else s.top_k, experts_of(term, s))


def times_touched(term: Term, s: Settings) -> int:
    """How often a token touches the term's bytes."""
    match term.by:
        case "position":
            return s.context if term.window is None else min(s.context, term.window)
        case "expert":
            return chosen_of(term, s)
        case "block":
            return ceil((experts_of(term, s) + term.extra) / ROWS)
        case "each":
            return experts_of(term, s)
        case "node":
            return term.trees * max(term.depth + s.doublings, 0)
        case by:
            return 0 if by == "kept" else 1


def times_stored(term: Term, s: Settings) -> int:
    """How often a model has the term's bytes."""
    match term.by:
        case "expert":
            return experts_of(term, s)
        case "node":
            return term.trees * (2 ** max(term.depth + s.doublings, 0) - 1)
        case "kept" | "read":
            return 1 if term.by == "kept" else 0
        case _:
            return times_touched(term, s)


def size(term: Term, times: int, s: Settings) -> int:
    """Bytes, rounded as JavaScript's Math.round does."""
    return floor(times * term.bytes * (s.scale if term.packed else 1.0) + 0.5)


def touched(of: Sequence[Term], s: Settings) -> dict[str, int]:
    """Bytes that a decoded token touches, by part."""
    parts: dict[str, int] = {}
    for term in of:
        parts[term.part] = parts.get(term.part, 0) + size(term, times_touched(term, s), s)
    return parts


def stored(of: Sequence[Term], s: Settings) -> int:
    """Bytes of all weights, and of a KV cache that is full up to the context."""
    return sum(size(term, times_stored(term, s), s) for term in of)


def own_bits(spec: ModelSpec, formats: Mapping[str, str]) -> float:
    """Bits of a weight on average, scales and padding included, of all matrices but routers."""
    shapes = {name: shape for name, shape in tensors(spec).items() if is_matrix(name) and not is_router(name)}
    nbytes = sum(matrices_bytes(name, shape, formats[name]) for name, shape in shapes.items())
    return 8 * nbytes / sum(map(prod, shapes.values()))
