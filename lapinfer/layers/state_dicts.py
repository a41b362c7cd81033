"""Fast feedforward layers from the tensor names of other trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lapinfer.arguments import described
from lapinfer.errors import InputError
from lapinfer.spec import Activation

LAPINFER_NAMES = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias", "node_out", "node_out_bias")


def fff_arrays(state: Mapping[str, Any], prefix: str, trees: int | None) -> tuple[dict[str, Any], Activation]:
    """Arguments of layers.FFF, and the activation that the trainer uses by default."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError(f"state: expected tensors by their names, got {described(state)}")
    tensors = {name.removeprefix(prefix): _array(value) for name, value in state.items() if name.startswith(prefix)}
    if "w1s" in tensors:
        return _fastfeedforward(tensors), "relu"
    if "linear_in.weight" in tensors:
        return _ultrafastbert(tensors, trees), "gelu"
    if "up" in tensors and "down" in tensors:
        return _lapinfer(tensors, trees), "silu" if "gate" in tensors else "relu"
    names = ", ".join(sorted(tensors)[:8]) or "nothing"
    raise InputError(
        f"no fast feedforward layer under {prefix!r}: found {names}; expected w1s (fastfeedforward), linear_in.weight "
        "(UltraFastBERT), or up and down (docs/checkpoint-format.md)"
    )


def _array(value: Any) -> np.ndarray:
    """A NumPy array of anything that holds numbers; torch's tensors, also of bfloat16, become float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    return np.asarray(value)


def _need(tensors: Mapping[str, np.ndarray], *names: str) -> list[np.ndarray]:
    """The named tensors; InputError if one is missing."""
    for name in names:
        if name not in tensors:
            raise InputError(f"{name} is missing; found {', '.join(sorted(tensors)[:12])}")
    return [tensors[name] for name in names]


def _fastfeedforward(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """w1s [2^d, in, F], b1s, w2s [2^d, F, out], b2s, node_weights, node_biases; magic_* is a master leaf."""
    w1, b1, w2, b2, nodes, node_bias = _need(tensors, "w1s", "b1s", "w2s", "b2s", "node_weights", "node_biases")
    if w1.ndim != 3 or w2.ndim != 3:
        raise InputError(f"w1s has shape {w1.shape}, w2s {w2.shape}, expected [2^d, in, leaf] and [2^d, leaf, out]")
    if "depth" in tensors and (depth := int(tensors["depth"].reshape(-1)[0])) != len(w1).bit_length() - 1:
        raise InputError(f"depth is {depth}, but w1s has {len(w1)} leaves")
    arrays: dict[str, Any] = {
        "up": w1.transpose(0, 2, 1), "up_bias": b1, "down": w2.transpose(0, 2, 1), "down_bias": b2,
    }  # fmt: skip
    if len(nodes):
        arrays |= {"nodes": nodes, "node_bias": node_bias.reshape(-1)}
    else:
        arrays["nodes"] = None
    if "magic_w1" in tensors:
        m1, mb1, m2, mb2, k = _need(tensors, "magic_w1", "magic_b1", "magic_w2", "magic_b2", "k")
        arrays["master"] = {
            "up": m1.reshape(m1.shape[-2:]).T, "up_bias": mb1.reshape(-1), "down": m2.reshape(m2.shape[-2:]).T,
            "down_bias": mb2.reshape(-1),
        }  # fmt: skip
        arrays["mix"] = float(k.reshape(-1)[0])
    return arrays


def _ultrafastbert(tensors: Mapping[str, np.ndarray], trees: int | None) -> dict[str, Any]:
    """linear_in.weight [trees · (2^(d+1) − 1), D], linear_out.weight [out, the same]."""
    first, last = _need(tensors, "linear_in.weight", "linear_out.weight")
    if "linear_out.bias" in tensors:
        raise InputError("linear_out.bias is not known of UltraFastBERT's layers; add it to the result yourself")
    count = len(first)
    if trees is None:  # as few as possible: the largest tree whose size divides the number of neurons
        sizes = [(2 << d) - 1 for d in range(count.bit_length())]
        trees = count // max(size for size in sizes if count % size == 0)
    arrays: dict[str, Any] = {
        "nodes": None, "up": first[:, None, :], "down": last.T[:, :, None], "trees": trees, "neurons": True,
    }  # fmt: skip
    if "linear_in.bias" in tensors:
        arrays["up_bias"] = tensors["linear_in.bias"][:, None]
    return arrays


def _lapinfer(tensors: Mapping[str, np.ndarray], trees: int | None) -> dict[str, Any]:
    """docs/checkpoint-format.md."""
    arrays: dict[str, Any] = {name: tensors[name] for name in LAPINFER_NAMES if name in tensors}
    arrays |= {"nodes": tensors.get("nodes.weight"), "node_bias": tensors.get("nodes.bias"), "trees": trees or 1}
    master = {name.removeprefix("master_"): values for name, values in tensors.items() if name.startswith("master_")}
    if master:
        arrays["master"] = master
    if "mix" in tensors:
        arrays["mix"] = float(tensors["mix"].reshape(-1)[0])
    return arrays
