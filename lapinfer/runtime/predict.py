"""Bytes that a step will touch, from the spec and the formats of its matrices alone.

Written apart from the plan and its meter, so that each checks the other: they agree to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from lapinfer.quant import GROUP, ROWS
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.rows import row_bytes
from lapinfer.runtime.kv import KVName, bytes_per_position
from lapinfer.runtime.routing import expected_distinct
from lapinfer.spec import LayerSpec, ModelSpec, NormSpec, TreeSpec
from lapinfer.tensors import is_matrix, is_row_by_row, layer_tensors, tensors

OF_ATTENTION = (
    "attn_norm", "qkv", "q_norm", "k_norm", "q_a_norm", "q_b", "kv_norm", "k_up", "v_up", "sinks", "o",
    "attn_post_norm",
)  # fmt: skip
OF_CONVOLUTION = ("attn_norm", "conv_in", "conv_out", "attn_post_norm")
PARTS: tuple[str, ...] = ("embedding", "attention", "convolution", "kv", "router", "experts", "feed-forward", "head")
"""`kv` is what goes from position to position: keys and values; a convolution's kernel and the inputs that it sees."""


def predict_bytes(
    spec: ModelSpec, formats: Mapping[str, str], kv: KVName, slot: Sequence[int] | np.ndarray,
    pos: Sequence[int] | np.ndarray, wanted: int, distinct: Mapping[int, int] | None = None,
    nodes: Mapping[int, int] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Bytes touched by each part in one step: tokens at (slot[i], pos[i]), of which `wanted` get logits.

    formats: the format of each matrix by our tensor names. distinct: how many experts of a layer are read, by layer,
    shared ones included; nodes: how many nodes of its trees. Those of one token are known, those of several are else
    what is expected of chance.
    """
    parts = dict.fromkeys(parts_of(spec), 0)
    row = matrix_bytes("embed", ROWS, spec.hidden, formats["embed"]) // ROWS
    parts["embedding"] = len(pos) * (row + (4 * spec.hidden if spec.positions else 0))
    for i, layer in enumerate(spec.layers):
        for name, shape in layer_tensors(spec, i).items():
            part = part_of(name, layer)
            size = matrices_bytes(name, shape, formats[name]) if is_matrix(name) else 4 * prod(shape)
            if part == "experts":
                size = size // shape[0] * (distinct or {}).get(i, expected_experts(layer, len(pos)))
            elif (tree := layer.feed_forward.router) is not None and isinstance(tree, TreeSpec) and _of_nodes(name):
                size = size // (tree.trees * tree.nodes) * (nodes or {}).get(i, expected_nodes(layer, len(pos)))
            elif name.endswith(".mix"):
                size = 0  # read when the model is loaded
            parts[part] += size
        parts["kv"] += positions_read(layer, slot, pos) * bytes_per_position(layer, spec.hidden, kv)
    if wanted:
        parts["head"] = _head_bytes(spec, formats)
    return parts


def _of_nodes(name: str) -> bool:
    """Whether a tensor of a layer has a part for each node of its trees."""
    return name.split(".")[2] in ("nodes", "node_out")


def matrix_bytes(name: str, rows: int, columns: int, format: str) -> int:
    """Bytes of a packed matrix. Results that become activations (up, gate_up) come in whole groups of rows."""
    last = name.rsplit(".", 1)[-1]
    if last == "gate_up":
        blocks = 2 * (GROUP // ROWS) * -(-rows // 2 // GROUP)
    elif last == "up":
        blocks = (GROUP // ROWS) * -(-rows // GROUP)
    else:
        blocks = -(-rows // ROWS)
    return blocks * FORMATS[format].row_block_bytes(columns)


def positions_read(layer: LayerSpec, slot: Sequence[int] | np.ndarray, pos: Sequence[int] | np.ndarray) -> int:
    """Positions that a layer's tokens see: each once a slot, from the oldest that its window reaches."""
    window = layer.window
    positions = 0
    for s in {int(s) for s in slot}:
        seen = [int(p) for p, of in zip(pos, slot, strict=True) if of == s]
        positions += max(seen) + 1 - (0 if window is None else max(min(seen) + 1 - window, 0))
    return positions


def matrices_bytes(name: str, shape: tuple[int, ...], format: str) -> int:
    """Bytes of a packed matrix [R, C], or of several [n, R, C]."""
    if is_row_by_row(name):
        return prod(shape[:-1]) * row_bytes(format, shape[-1])
    return prod(shape[:-2]) * matrix_bytes(name, shape[-2], shape[-1], format)


def packed_bytes(spec: ModelSpec, formats: Mapping[str, str]) -> dict[str, int]:
    """Bytes of all weights by format; f32 includes what is not multiplied."""
    sizes: dict[str, int] = {}
    for name, shape in tensors(spec).items():
        format = formats[name] if is_matrix(name) else "f32"
        size = matrices_bytes(name, shape, format) if is_matrix(name) else 4 * prod(shape)
        sizes[format] = sizes.get(format, 0) + size
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


def _visited(levels: int, tokens: int) -> float:
    """Different nodes in so many levels of a tree that tokens meet which go either way with equal chance."""
    return sum(float(expected_distinct(1 << level, 1, tokens)) for level in range(levels))


def expected_reads(spec: ModelSpec, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Experts and nodes [routed layers] that a step is expected to read, before it has run."""
    routed = [layer for layer in spec.layers if layer.feed_forward.router is not None]
    experts = [expected_experts(layer, tokens) for layer in routed]
    return np.array(experts, np.int64), np.array([expected_nodes(layer, tokens) for layer in routed], np.int64)


def parts_of(spec: ModelSpec) -> list[str]:
    """The parts of PARTS that a model has."""
    routed = [layer.feed_forward.router is not None for layer in spec.layers]
    plain = not all(routed) or any(layer.ff_post_norm is not None for layer in spec.layers)
    convolutions = [layer.convolution is not None for layer in spec.layers]
    there = {
        "attention": not all(convolutions), "convolution": any(convolutions), "router": any(routed),
        "experts": any(routed), "feed-forward": plain,
    }  # fmt: skip
    return [part for part in PARTS if there.get(part, True)]


def part_of(name: str, layer: LayerSpec) -> str:
    """What a tensor of a layer is accounted as."""
    part = name.split(".")[2]
    if layer.convolution is not None and part in OF_CONVOLUTION:
        return "convolution"
    if part == "conv":
        return "kv"
    if part in OF_ATTENTION:
        return "attention"
    if part in ("experts", "leaves"):
        return "experts"
    if part in ("router", "nodes", "node_out", "mix"):
        return "router"
    return "router" if layer.feed_forward.router is not None and part == "ff_norm" else "feed-forward"


def _head_bytes(spec: ModelSpec, formats: Mapping[str, str]) -> int:
    name = "embed" if spec.tied else "head"
    matrix = matrix_bytes(name, spec.vocab, spec.hidden, formats[name])
    # Where the last block has rows that are no tokens, a bias keeps them from being the likeliest.
    bias = 4 * spec.vocab if spec.head_bias or spec.vocab % ROWS else 0
    return matrix + _norm_bytes(spec.norm, spec.hidden) + bias


def _norm_bytes(norm: NormSpec, width: int) -> int:
    return 4 * width * (2 if norm.bias else 1)
