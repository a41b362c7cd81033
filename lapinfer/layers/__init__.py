"""Feed-forward layers on their own, on NumPy arrays: dense, mixtures of experts, and fast feedforward trees.

    import numpy as np
    from lapinfer.layers import FFF

    layer = FFF.from_state_dict(state, quant="q8")     # of fastfeedforward, UltraFastBERT, or your own trainer
    y = layer(x)                                       # float32 [T, D] -> [T, out]: d nodes and one leaf per token
    soft = layer(x, mode="soft")                       # the mixture that it was trained as
    layer.usage()                                      # leaves and nodes visited, entropy of the decisions
    print(layer.explain())                             # ops, bytes and multiply-adds of one token

Letters: T tokens, D input width, F width of an expert or leaf, E experts, N nodes of a tree. The kernels, the packed
formats and the accounting are those of whole models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Literal, get_args

import numpy as np

from lapinfer.arguments import described, float_array, whole
from lapinfer.errors import InputError
from lapinfer.layers.layer import Array, Layer, P, check_activation, matrix_names, rounded
from lapinfer.layers.state_dicts import dense_arrays, fff_arrays, moe_arrays
from lapinfer.quant.formats import FORMATS
from lapinfer.spec import Activation, FeedForwardSpec, RouterSpec, Score, TreeSpec

SCORES = tuple(score for score in get_args(Score) if score != "sparsemixer")  # which belongs to one family
NARROW_OF_FLOATS = 64
"""Narrower leaves of floats are kept neuron by neuron: one op on one thread is then faster than three ops on two
(bench/LOG.md)."""

__all__ = ["FFF", "Dense", "Layer", "MoE"]


class Dense(Layer):
    """down · act(up · x), or down · (act(gate · x) · up · x)."""

    def __init__(
        self, up: Array, down: Array, gate: Array | None = None, *, up_bias: Array | None = None,
        down_bias: Array | None = None, gate_bias: Array | None = None, activation: Activation | None = None,
        **options: Any,
    ):  # fmt: skip
        """up, gate [F, D], down [out, F], as torch.nn.Linear has them; biases [F], [F], [out]. options: of Layer.
        activation: by default silu with a gate and relu without."""
        up, down, gate = _array("up", up, 2), _array("down", down, 2), _like("gate", gate, up)
        (F, D), out = up.shape, len(down)
        biased = down_bias is not None or up_bias is not None
        ff = FeedForwardSpec(F, _activation(activation, gate), gate is not None, biased)
        first, second = matrix_names(ff)
        arrays = {first: up if gate is None else np.concatenate([gate, up]), second: down}
        if ff.bias:
            sides = [("up_bias", up_bias)] if gate is None else [("gate_bias", gate_bias), ("up_bias", up_bias)]
            arrays[first + ".bias"] = np.concatenate([_bias(name, side, F) for name, side in sides])
            arrays[second + ".bias"] = _bias("down_bias", down_bias, out)
        super().__init__(ff, arrays, D, out, **options)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], *, prefix: str = "", **options: Any) -> Dense:
        """A layer from the tensors (NumPy's or torch's) whose names begin with `prefix`; options: those of the class.

        Accepted are gate_proj, up_proj and down_proj (Llama), w1, w3 and w2, fc1 and fc2, and 0 and 2 (nn.Sequential),
        with biases or without. InputError for any other tensor: the layer would be another one without it.
        """
        return cls(**dense_arrays(state, prefix), **options)


class MoE(Layer):
    """Σ weight · expert(x) over the `top_k` experts with the highest logits, router · x.

    l = router · x (+ router_bias). score: weights are a "softmax" of all l, a "sigmoid" of each, or, for "logits", a
    softmax of the chosen ones. normalise: the weights of the chosen experts are divided by their sum, as in Mixtral;
    without, they are what they are among all.
    """

    def __init__(
        self, router: Array, up: Array, down: Array, gate: Array | None = None, *, top_k: int = 2,
        activation: Activation | None = None, router_bias: Array | None = None, score: str = "softmax",
        normalise: bool = True, up_bias: Array | None = None, down_bias: Array | None = None,
        gate_bias: Array | None = None, **options: Any,
    ):  # fmt: skip
        """router [E, D]; up, gate [E, F, D], down [E, out, F]; biases [E], [E, F], [E, out]. options: of Layer.
        activation: by default silu with a gate and relu without."""
        up, down = _array("up", up, 3), _array("down", down, 3)
        (E, F, D), out = up.shape, down.shape[1]
        if score not in SCORES:
            raise InputError(f"score {score!r} is not known, expected one of {', '.join(SCORES)}")
        top_k = whole("top_k", top_k, 1, E)
        route = RouterSpec(E, top_k, score, normalise, bias=router_bias is not None)  # type: ignore[arg-type]
        biased = down_bias is not None or up_bias is not None
        ff = FeedForwardSpec(F, _activation(activation, gate), gate is not None, biased, route)
        arrays = {P + "router": router} | _bank(ff, up, down, gate, up_bias, down_bias, gate_bias)
        if router_bias is not None:
            arrays[P + "router.bias"] = router_bias
        super().__init__(ff, arrays, D, out, **options)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], *, top_k: int, prefix: str = "", **options: Any) -> MoE:
        """A layer from the tensors (NumPy's or torch's) whose names begin with `prefix`; options: those of the class.

        Accepted are gate or router, and of each expert the names of Dense.from_state_dict (Mixtral, Qwen, OLMoE), or
        experts.gate_up_proj [E, 2 · F, D] and experts.down_proj [E, D, F] (transformers 5). No tensor tells top_k,
        score and normalise: they are in a model's config.json. InputError for any other tensor, of shared experts, say.
        """
        return cls(**moe_arrays(state, prefix), top_k=top_k, **options)


class FFF(Layer):
    """Fast feedforward network (arXiv 2308.14711): a binary tree of nodes, and a leaf, of which one is computed."""

    def __init__(
        self, nodes: Array | None, up: Array, down: Array, gate: Array | None = None, *,
        node_bias: Array | None = None, up_bias: Array | None = None, down_bias: Array | None = None,
        gate_bias: Array | None = None, node_out: Array | None = None, node_out_bias: Array | None = None,
        node_activation: Activation = "relu", trees: int = 1, activation: Activation | None = None,
        master: Mapping[str, Array] | None = None, mix: float | None = None, neurons: bool = False, quant: str = "f32",
        node_format: str = "f32", **options: Any,
    ):  # fmt: skip
        """nodes [N · n, D] in level order (None: no nodes, depth 0), with node_out [N, n] where a node has n neurons;
        up, gate [leaves, F, D], down [leaves, out, F]; biases [N · n], [leaves, F], [leaves, out]. Several trees follow
        one another. master: up, down, gate, biases of a leaf that every token gets with weight 1 − σ(mix).
        activation: of leaves, by default silu with a gate and relu without. neurons: UltraFastBERT's trees, up
        [neurons, 1, D] and down [neurons, out, 1], which have no other nodes.
        """
        up, down, trees = _array("up", up, 3), _array("down", down, 3), whole("trees", trees, 1)
        (E, F, D), out = up.shape, down.shape[1]
        n = 1 if node_out is None else _array("node_out", node_out, 2).shape[1]
        rows = 0 if nodes is None else len(_array("nodes", nodes, 2))
        depth = _depth(E, trees, neurons, rows, n)
        check_activation("node_activation", node_activation, False)
        tree = TreeSpec(depth, trees, n, node_bias is not None, node_activation, neurons, mix is not None)
        biased = any(bias is not None for bias in (up_bias, down_bias, gate_bias))
        shared = 0 if master is None else -(-len(_master(master)["up"]) // F)
        kind, by_neuron = _activation(activation, gate), keeps_neurons(quant, F)
        ff = FeedForwardSpec(F, kind, gate is not None, biased, tree, shared, by_neuron=by_neuron)
        if master is not None:
            arrays = _bank(ff, *_with_master(ff, _master(master), up, down, gate, up_bias, down_bias, gate_bias))
        else:
            arrays = _bank(ff, up, down, gate, up_bias, down_bias, gate_bias)
        for name, values in (
            ("nodes", nodes), ("nodes.bias", node_bias), ("node_out", node_out), ("node_out.bias", node_out_bias),
            ("mix", None if mix is None else [mix]),
        ):  # fmt: skip
            if values is not None:
                arrays[P + name] = float_array(name, values)
        super().__init__(ff, arrays, D, out, quant=quant, nodes=node_format, **options)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], *, prefix: str = "", activation: Activation | None = None,
        trees: int | None = None, without_output_bias: bool = False, **options: Any,
    ) -> FFF:  # fmt: skip
        """A layer from the tensors (NumPy's or torch's) whose names begin with `prefix`.

        Accepted are the names of the `fastfeedforward` package (w1s …; relu), of its variant with a master leaf
        (magic_w1 …), of UltraFastBERT (linear_in …; gelu) and of docs/checkpoint-format.md (nodes.weight, up, …).
        activation: no trainer stores it; by default the one that the trainer uses. trees: their number, which
        UltraFastBERT does not store; by default as few as the number of neurons allows. without_output_bias: leaves
        out w2's bias, as fastfeedforward 0.2.1 does in evaluation, but not in training.
        """
        arrays, usual_activation = fff_arrays(state, prefix, trees)
        if without_output_bias:
            arrays.pop("down_bias", None)
        return cls(**arrays, activation=activation or usual_activation, **options)

    @property
    def tree(self) -> TreeSpec:
        assert isinstance(self.ff.router, TreeSpec)
        return self.ff.router

    def __call__(self, x: Array, mode: Literal["hard", "soft"] = "hard") -> Array:
        """float32 [T, D] -> [T, out]. soft: all leaves, each with its weight in the mixture of training."""
        if mode == "hard":
            return super().__call__(x)
        if mode != "soft":
            raise InputError(f"mode {mode!r} is not known, expected hard or soft")
        from lapinfer.layers.soft import soft_forward

        return soft_forward(self.ff, self.tree, self.dequantized(), self._inputs(x), self.out)

    def _arranged_for(self, quant: str) -> tuple[FeedForwardSpec, dict[str, Array]]:
        ff = replace(self.ff, by_neuron=keeps_neurons(quant, self.ff.width))
        if ff.narrow == self.ff.narrow:
            return ff, self.arrays
        names = dict(zip(matrix_names(self.ff), matrix_names(ff), strict=True))
        second = matrix_names(self.ff)[1]
        arrays = {}
        for name, values in self.arrays.items():
            base = name.removesuffix(".bias")
            arrays[name.replace(base, names.get(base, base))] = values.transpose(0, 2, 1) if name == second else values
        return ff, arrays

    def leaves(self, x: Array) -> Array:
        """The leaf, or neurons, that each token gets, int64 [T, trees (· (depth + 1))]."""
        x, batch = self._inputs(x), self._options["batch"]
        chosen = [np.zeros((0, self.tree.top_k), np.int64)]
        for start in range(0, len(x), batch):
            piece = x[start : start + batch]
            with self._lock:  # the next call overwrites the choices
                super().__call__(piece)
                chosen.append(self._ops.routing.chosen[0, : len(piece)].copy())
        return np.concatenate(chosen)

    def dequantized(self) -> dict[str, Array]:
        """The arrays as the kernels see them, rounded to their formats."""
        return {
            name: rounded(values, self.formats[name]) if name in self.formats else values
            for name, values in self.arrays.items()
        }


def keeps_neurons(quant: str, width: int) -> bool:
    """Whether a format keeps leaves of this width neuron by neuron, even if they are not narrow."""
    return quant in FORMATS and not FORMATS[quant].grouped and width < NARROW_OF_FLOATS


def _activation(named: Activation | None, gate: Array | None) -> Activation:
    """The usual one where none is named."""
    return named or ("relu" if gate is None else "silu")


def _array(name: str, values: Any, dimensions: int) -> Array:
    """float32 of as many dimensions, none of them empty."""
    array = float_array(name, values)
    if array.ndim != dimensions or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}, expected {dimensions} dimensions, none of them empty")
    return array


def _like(name: str, values: Array | None, up: Array) -> Array | None:
    if values is None:
        return None
    array = float_array(name, values)
    if array.shape != up.shape:
        raise InputError(f"{name} has shape {array.shape}, up {up.shape}: expected the same")
    return array


def _bias(name: str, values: Array | None, *shape: int) -> Array:
    """A bias of a shape, which may be given in another one of as many numbers; zeros where there is none."""
    if values is None:
        return np.zeros(shape, np.float32)
    array = float_array(name, values)
    if array.size != prod(shape):
        raise InputError(f"{name} has shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def _master(given: Any) -> dict[str, Array]:
    """The arrays of a master leaf; InputError when those that it must have are missing."""
    if not isinstance(given, Mapping):
        raise InputError(f"master: expected up, down and so on by their names, got {described(given)}")
    for name in ("up", "down"):
        if name not in given:
            raise InputError(f"master: {name} is missing")
        _array(f"master's {name}", given[name], 2)
    return {name: float_array(f"master's {name}", values) for name, values in given.items()}


def _depth(experts: int, trees: int, neurons: bool, rows: int, n: int) -> int:
    """The depth of `trees` trees with `experts` leaves, or neurons, and `rows` rows of nodes of n neurons each."""
    per_tree = experts // trees if trees > 0 else 0
    size = per_tree + 1 if neurons else per_tree
    depth = size.bit_length() - (2 if neurons else 1)
    if trees < 1 or experts % trees or size != 1 << size.bit_length() - 1 or depth < 0:
        kind = "2^(d + 1) − 1 neurons" if neurons else "2^d leaves"
        raise InputError(f"{trees} trees have {experts} {'neurons' if neurons else 'leaves'}, expected {kind} in each")
    expected = 0 if neurons else trees * ((1 << depth) - 1) * n
    if rows != expected:
        raise InputError(
            f"nodes has {rows} rows, {trees} trees of depth {depth} (by {experts} leaves) have {expected // max(n, 1)} "
            f"nodes of {n}: expected {expected}"
        )
    return depth


def _bank(
    ff: FeedForwardSpec, up: Any, down: Any, gate: Array | None, up_bias: Array | None, down_bias: Array | None,
    gate_bias: Array | None,
) -> dict[str, Array]:  # fmt: skip
    """The experts' arrays by our tensor names."""
    (E, F), first, last = up.shape[:2], up, down
    if (gate := _like("gate", gate, up)) is not None:
        first = np.concatenate([gate, first], axis=1)
    first_name, second_name = matrix_names(ff)
    arrays = {first_name: first, second_name: last.transpose(0, 2, 1) if ff.narrow else last}
    if ff.bias:
        sides = [("up_bias", up_bias)] if gate is None else [("gate_bias", gate_bias), ("up_bias", up_bias)]
        arrays[first_name + ".bias"] = np.concatenate([_bias(name, s, E, F) for name, s in sides], axis=1)
        arrays[second_name + ".bias"] = _bias("down_bias", down_bias, E, last.shape[1])
    return arrays


def _with_master(ff: FeedForwardSpec, master: Mapping[str, Array], *leaves: Array | None) -> list[Array | None]:
    """The leaves' arrays, followed by the master leaf as ff.shared leaves side by side."""
    try:
        return _extended(ff, master, *leaves)
    except ValueError as error:
        raise InputError(f"master: its arrays do not fit the leaves' ({error})") from error


def _extended(ff: FeedForwardSpec, master: Mapping[str, Array], *leaves: Array | None) -> list[Array | None]:
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    extended: list[Array | None] = []
    for name, values in zip(names, leaves, strict=True):
        added = master.get(name)
        if values is None:
            if added is not None and np.any(added):
                raise InputError(f"the master leaf has {name}, the leaves have none: give them zeros")
            extended.append(None)
            continue
        wide = np.zeros((ff.shared, *np.shape(values)[1:]), np.float32)
        if added is not None and name == "down":
            out = len(added)
            flat = np.zeros((out, ff.shared * ff.width), np.float32)
            flat[:, : added.shape[1]] = added
            wide[:] = flat.reshape(out, ff.shared, ff.width).transpose(1, 0, 2)
        elif added is not None and name == "down_bias":
            wide[0] = added
        elif added is not None:
            wide.reshape(-1, *wide.shape[2:])[: len(added)] = added
        extended.append(np.concatenate([np.asarray(values, np.float32), wide]))
    return extended
