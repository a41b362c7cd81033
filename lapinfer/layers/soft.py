"""The soft mixture that a tree is trained as: every leaf, weighted by the decisions on the way to it (NumPy).

The difference to the chosen leaf alone is what hardening costs. For measuring, not for speed.
"""

from __future__ import annotations

from math import erf

import numpy as np

from lapinfer.errors import InputError
from lapinfer.layers.layer import P, matrix_names
from lapinfer.spec import FeedForwardSpec, TreeSpec


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x) without overflow: logits of trained nodes go into the hundreds."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    """An activation (spec.Activation) that needs no gate."""
    match kind:
        case "silu":
            return x * sigmoid(x)
        case "gelu":
            return 0.5 * x * (1 + np.vectorize(erf, otypes=[x.dtype])(x / np.sqrt(2)))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        case "relu":
            return np.maximum(x, 0)
        case "relu2":
            return np.maximum(x, 0) ** 2
        case _:
            raise InputError(f"activation {kind!r} has no soft mixture here")


def mixture(tree: TreeSpec, logits: np.ndarray) -> np.ndarray:
    """Weight of each leaf [T, trees, 2^depth] by the logits of all nodes [T, trees, nodes]."""
    right = sigmoid(logits)
    weights = np.ones((*logits.shape[:2], 1), logits.dtype)
    for level in range(tree.depth):
        first = (1 << level) - 1
        c = right[..., first : 2 * first + 1]
        weights = np.stack([weights * (1 - c), weights * c], axis=-1).reshape(*logits.shape[:2], -1)
    return weights


def node_logits(tree: TreeSpec, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Logits of all nodes [T, trees, nodes]."""
    if not tree.nodes:
        return np.zeros((len(x), tree.trees, 0), x.dtype)
    logits = x @ arrays[P + "nodes"].T
    if tree.node_bias:
        logits = logits + arrays[P + "nodes.bias"]
    if tree.node_width > 1:
        hidden = activate(tree.node_activation, logits).reshape(len(x), -1, tree.node_width)
        logits = (hidden * arrays[P + "node_out"]).sum(axis=-1) + arrays[P + "node_out.bias"]
    return logits.reshape(len(x), tree.trees, tree.nodes)


def soft_forward(
    ff: FeedForwardSpec, tree: TreeSpec, arrays: dict[str, np.ndarray], x: np.ndarray, out: int
) -> np.ndarray:
    """Σ weight · leaf(x) over all leaves, [T, out] (arXiv 2308.14711, algorithm 1, forward of training)."""
    if tree.neurons:
        raise InputError("a tree of neurons has no soft mixture: UltraFastBERT's is trained as it is evaluated")
    weights = mixture(tree, node_logits(tree, arrays, x)).reshape(len(x), -1)
    leaf, rest = 1.0, 1.0
    if tree.mix:
        leaf = float(sigmoid(arrays[P + "mix"])[0])
        rest = 1.0 - leaf
    y = np.zeros((len(x), out), np.float32)
    for e in range(ff.experts):
        weight = leaf * weights[:, e, None] if e < tree.n_experts else np.float32(rest)
        y += (weight * leaf_output(ff, arrays, e, x)).astype(np.float32)
    return y


def leaf_output(ff: FeedForwardSpec, arrays: dict[str, np.ndarray], e: int, x: np.ndarray) -> np.ndarray:
    """One leaf for all tokens, [T, out]."""
    first, last = matrix_names(ff)
    h = x @ arrays[first][e].T
    if ff.bias:
        h = h + arrays[first + ".bias"][e]
    h = activate(ff.activation, h[:, : ff.width]) * h[:, ff.width :] if ff.gated else activate(ff.activation, h)
    y = h @ (arrays[last][e] if ff.narrow else arrays[last][e].T)
    return y + arrays[last + ".bias"][e] if ff.bias and last + ".bias" in arrays else y
