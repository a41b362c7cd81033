"""Layers from the tensor names of other trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lapinfer.arguments import described
from lapinfer.errors import InputError
from lapinfer.spec import Activation

FEED_FORWARDS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("", "fc1", "fc2"), ("", "0", "2"))
"""Modules of a feed-forward, gate, up and down: Llama's and most others', Mixtral's, those without a gate."""
FUSED = "experts.gate_up_proj"
LAPINFER_NAMES = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias", "node_out", "node_out_bias")


def fff_arrays(state: Mapping[str, Any], prefix: str, trees: int | None) -> tuple[dict[str, Any], Activation]:
    """Arguments of layers.FFF, and the activation that the trainer uses by default."""
    tensors = _tensors(state, prefix)
    if "w1s" in tensors:
        return _fastfeedforward(tensors), "relu"
    if "linear_in.weight" in tensors:
        return _ultrafastbert(tensors, trees), "gelu"
    if "up" in tensors and "down" in tensors:
        return _lapinfer(tensors, trees), "silu" if "gate" in tensors else "relu"
    raise InputError(
        f"no fast feedforward layer under {prefix!r}: found {_names(tensors)}; expected w1s (fastfeedforward), "
        "linear_in.weight (UltraFastBERT), or up and down (docs/checkpoint-format.md)"
    )


def dense_arrays(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Arguments of layers.Dense."""
    tensors = _tensors(state, prefix)
    if not (arrays := _feed_forward(tensors)):
        expected = "up_proj.weight and down_proj.weight, fc1 and fc2, w3 and w2, or 0 and 2 (nn.Sequential)"
        raise InputError(f"no feed-forward under {prefix!r}: found {_names(tensors)}; expected {expected}")
    return _all_taken(arrays, tensors)


def moe_arrays(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Arguments of layers.MoE."""
    tensors = _tensors(state, prefix)
    router = next((name for name in ("gate", "router") if f"{name}.weight" in tensors), None)
    if router is None:
        expected = "gate.weight or router.weight"
        raise InputError(f"no router under {prefix!r}: found {_names(tensors)}; expected {expected}")
    arrays = _taken(tensors, {"router": router})
    if FUSED in tensors:  # [E, gate · up, D]
        first, arrays["down"] = _need(tensors, FUSED, "experts.down_proj")
        if first.ndim != 3 or first.shape[1] % 2:
            raise InputError(f"{FUSED} has shape {first.shape}, expected [experts, 2 · neurons, width]")
        arrays["gate"], arrays["up"] = np.split(first, 2, axis=1)
        del tensors[FUSED], tensors["experts.down_proj"]
        return _all_taken(arrays, tensors)
    experts = [_feed_forward(tensors, f"experts.{i}.") for i in range(len(arrays["router"]))]
    for i, expert in enumerate(experts):
        if not expert or {n: a.shape for n, a in expert.items()} != {n: a.shape for n, a in experts[0].items()}:
            raise InputError(
                f"{prefix}experts.{i}: expected the tensors of {len(experts)} experts, all of one shape, as "
                f"gate_proj.weight, up_proj.weight and down_proj.weight, as w1, w3 and w2, or {FUSED} of all"
            )
    return _all_taken(arrays | {name: np.stack([expert[name] for expert in experts]) for name in experts[0]}, tensors)


def _feed_forward(tensors: dict[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """Matrices and biases of a feed-forward, which are taken away from the tensors; none where there is none."""
    for gate, up, down in FEED_FORWARDS:
        if f"{prefix}{up}.weight" in tensors and f"{prefix}{down}.weight" in tensors:
            return _taken(tensors, {"up": prefix + up, "down": prefix + down, "gate": prefix + gate})
    return {}


def _taken(tensors: dict[str, np.ndarray], modules: Mapping[str, str]) -> dict[str, Any]:
    """Weights and biases of modules of torch.nn.Linear, by the names of our arguments."""
    kinds = (("weight", ""), ("bias", "_bias"))
    found = {ours + end: f"{module}.{kind}" for ours, module in modules.items() for kind, end in kinds}
    return {name: tensors.pop(theirs) for name, theirs in found.items() if theirs in tensors}


def _all_taken(arrays: dict[str, Any], left: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arrays; InputError where a tensor was not understood, and the layer would be another one without it."""
    if left:
        raise InputError(f"not known here: {_names(left)}; leave it out of the state, and add what it does yourself")
    return arrays


def _tensors(state: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError(f"state: expected tensors by their names, got {described(state)}")
    return {name.removeprefix(prefix): _array(value) for name, value in state.items() if name.startswith(prefix)}


def _names(tensors: Mapping[str, np.ndarray]) -> str:
    return ", ".join(sorted(tensors)[:8]) or "nothing"


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
