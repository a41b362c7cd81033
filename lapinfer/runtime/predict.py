"""Bytes that a step will touch, from the spec and the formats of its matrices alone.

Written apart from the plan and its meter, so that each checks the other: they agree to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lapinfer.quant import FORMATS, GROUP, ROWS
from lapinfer.runtime.kv import KVName, bytes_per_key
from lapinfer.spec import LayerSpec, ModelSpec, NormSpec, is_matrix, layer_tensors

PARTS: tuple[str, ...] = ("embedding", "attention", "kv", "feed-forward", "head")


def predict_bytes(
    spec: ModelSpec, formats: Mapping[str, str], kv: KVName, slot: Sequence[int] | np.ndarray,
    pos: Sequence[int] | np.ndarray, wanted: int,
) -> dict[str, int]:  # fmt: skip
    """Bytes touched by each part in one step: tokens at (slot[i], pos[i]), of which `wanted` get logits.

    formats: the format of each matrix by our tensor names.
    """
    parts = dict.fromkeys(PARTS, 0)
    row = matrix_bytes("embed", ROWS, spec.hidden, formats["embed"]) // ROWS
    parts["embedding"] = len(pos) * (row + (4 * spec.hidden if spec.positions else 0))
    for i, layer in enumerate(spec.layers):
        for name, shape in layer_tensors(spec, i).items():
            part = "attention" if _of_attention(name) else "feed-forward"
            if is_matrix(name):
                parts[part] += matrix_bytes(name, shape[0], shape[1], formats[name])
            else:
                parts[part] += 4 * shape[0]
        parts["kv"] += keys_read(layer, slot, pos) * bytes_per_key(layer.attention, kv)
    if wanted:
        parts["head"] = _head_bytes(spec, formats)
    return parts


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


def keys_read(layer: LayerSpec, slot: Sequence[int] | np.ndarray, pos: Sequence[int] | np.ndarray) -> int:
    """Positions that a layer's queries see: each once a slot, from the oldest that its window reaches."""
    window = layer.attention.window
    keys = 0
    for s in {int(s) for s in slot}:
        seen = [int(p) for p, of in zip(pos, slot, strict=True) if of == s]
        keys += max(seen) + 1 - (0 if window is None else max(min(seen) + 1 - window, 0))
    return keys


def _of_attention(name: str) -> bool:
    return name.split(".")[2] in ("attn_norm", "qkv", "q_norm", "k_norm", "o", "attn_post_norm")


def _head_bytes(spec: ModelSpec, formats: Mapping[str, str]) -> int:
    name = "embed" if spec.tied else "head"
    matrix = matrix_bytes(name, spec.vocab, spec.hidden, formats[name])
    # Where the last block has rows that are no tokens, a bias keeps them from being the likeliest.
    bias = 4 * spec.vocab if spec.head_bias or spec.vocab % ROWS else 0
    return matrix + _norm_bytes(spec.norm, spec.hidden) + bias


def _norm_bytes(norm: NormSpec, width: int) -> int:
    return 4 * width * (2 if norm.bias else 1)
