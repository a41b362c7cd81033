"""What a decoded token would touch, and a model take, with other experts, bits or context: a formula of a few terms.

At the model's own settings it gives the bytes of `predict_bytes` and `packed_bytes`. page_whatif.py has the same
formula in JavaScript, line by line; `touched` and `stored` here are what it is tested against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from lapinfer.quant import ROWS
from lapinfer.runtime.kv import KVKinds
from lapinfer.runtime.predict import Term, byte_terms, parts_of
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the sliders. top_k: None for the model's own; doublings: 2^this times as many experts, of the same size, or
    trees deeper by this; scale: bits per weight by the model's own; context: positions that a token sees."""

    context: int
    top_k: int | None = None
    doublings: int = 0
    scale: float = 1.0


def terms(
    spec: ModelSpec, formats: Mapping[str, str], kv: KVKinds, best_blocks: int | None = None
) -> list[Term]:  # fmt: skip
    """The terms of a model; equal ones of several layers are one. best_blocks: as in `predict_bytes`."""
    sums: dict[Term, int] = {}
    for term in byte_terms(spec, formats, kv):
        for part in [term] if best_blocks is None else _in_two_passes(term, best_blocks, -(-spec.vocab // ROWS)):
            kind = replace(part, layer=-1, bytes=0)
            sums[kind] = sums.get(kind, 0) + part.bytes
    order = parts_of(spec)
    return sorted((replace(kind, bytes=size) for kind, size in sums.items()), key=lambda term: order.index(term.part))


def _in_two_passes(term: Term, read: int, blocks: int) -> list[Term]:
    """A term where the coarse copy of the head is read, and of the head itself so many of its row blocks."""
    if term.by == "head":
        part = read * (term.bytes // blocks)
        return [replace(term, by="logits", bytes=part), replace(term, by="kept", bytes=term.bytes - part)]
    return [replace(term, by="logits")] if term.by == "best" else [term]


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
            return 0 if by in ("kept", "best") else 1


def times_stored(term: Term, s: Settings) -> int:
    """How often a model has the term's bytes."""
    match term.by:
        case "expert":
            return experts_of(term, s)
        case "node":
            return term.trees * (2 ** max(term.depth + s.doublings, 0) - 1)
        case "kept" | "best":
            return 1
        case "token" | "masked":
            return 0
        case _:
            return times_touched(term, s)


def size(term: Term, times: int, s: Settings) -> int:
    """Bytes, rounded as JavaScript's Math.round does."""
    return floor(times * term.bytes * (s.scale if term.packed else 1.0) + 0.5)


def touched(terms: Sequence[Term], s: Settings) -> dict[str, int]:
    """Bytes that a decoded token touches, by part."""
    parts: dict[str, int] = {}
    for term in terms:
        parts[term.part] = parts.get(term.part, 0) + size(term, times_touched(term, s), s)
    return parts


def stored(terms: Sequence[Term], s: Settings) -> int:
    """Bytes of all weights, and of a KV cache that is full up to the context."""
    return sum(size(term, times_stored(term, s), s) for term in terms)


def own_bits(spec: ModelSpec, formats: Mapping[str, str]) -> float:
    """Bits per weight on average, scales and padding included, of all matrices but routers."""
    matrices = [tensor for tensor in tensors(spec).values() if tensor.is_matrix and tensor.role != "router"]
    nbytes = sum(tensor.nbytes(formats[tensor.name]) for tensor in matrices)
    return 8 * nbytes / sum(tensor.size for tensor in matrices)
