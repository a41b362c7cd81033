"""Feed-forward layers on their own, on NumPy arrays: dense, mixtures of experts, and fast feedforward trees.

    import numpy as np
    from lapinfer.layers import FFF

    layer = FFF.from_state_dict(state, quant="q8")     # of fastfeedforward, UltraFastBERT, or your own trainer
    y = layer(x)                                       # float32 [T, D] -> [T, out]: d nodes and one leaf a token
    soft = layer(x, mode="soft")                       # the mixture that it was trained as
    layer.usage()                                      # leaves and nodes visited, entropy of the decisions
    print(layer.explain())                             # ops, bytes and multiply-adds of one token

Letters: T tokens, D input width, F width of an expert or leaf, E experts, N nodes of a tree. The kernels, the packed
formats and the accounting are those of whole models.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from lapinfer.checkpoint.entries import BankEntry
from lapinfer.errors import InputError
from lapinfer.kernels.operands import PROBLEM, STEP, STORE
from lapinfer.model import default_threads
from lapinfer.pack import packed_entries, packed_rows
from lapinfer.quant import FORMATS
from lapinfer.quant.blocks import pack, take_rows
from lapinfer.quant.rows import NEAREST, pack_rows, unpack_rows
from lapinfer.quant.search import quantize
from lapinfer.runtime.build_feed_forward import feed_forward
from lapinfer.runtime.build_trees import Target
from lapinfer.runtime.meter import Meter
from lapinfer.runtime.ops import Limits, Ops, begin_step
from lapinfer.runtime.plan import Plan
from lapinfer.runtime.routing import decisions
from lapinfer.runtime.team import Team
from lapinfer.spec import Activation, FeedForwardSpec, RouterSpec, TreeSpec
from lapinfer.state_dicts import fff_arrays
from lapinfer.tensors import bank_of, feed_forward_tensors, is_matrix, is_router, is_row_by_row, router_tensors

Array = np.ndarray
P = "layers.0."
"""What the names of a layer's tensors begin with, as in a model of one layer."""

NODE_FORMATS = ("f32", "f16", "bf16")


class ArrayWeights:
    """Arrays by our tensor names, packed in memory as a packed file has them."""

    path = Path()

    def __init__(self, arrays: Mapping[str, Array], formats: Mapping[str, str]):
        self._formats = formats
        self._tensors: dict[str, Array] = {}
        self._banks: dict[str, BankEntry] = {}
        for entry in packed_entries({name: values.shape for name, values in arrays.items()}, formats):
            if isinstance(entry, BankEntry):
                parts = [np.stack([_packed(p.name, w, formats[p.name]) for w in arrays[p.name]]) for p in entry.parts]
                self._tensors[entry.name], self._banks[entry.name] = entry.experts_of(parts), entry
            elif entry.format is None:
                self._tensors[entry.name] = np.ascontiguousarray(arrays[entry.name], np.float32)
            else:
                self._tensors[entry.name] = _packed(entry.name, arrays[entry.name], entry.format)

    def tensor(self, name: str) -> Array:
        return self._tensors[name]

    def format(self, name: str) -> str | None:
        return self._formats.get(name)

    def offset(self, name: str) -> int:
        return self._banks[str(bank_of(name))].offset(name)

    def file_offset(self, bank: str) -> int:
        raise NotImplementedError(bank)

    @property
    def nbytes(self) -> int:
        """Of everything, padding included."""
        return sum(values.nbytes for values in self._tensors.values())


class Layer:
    """What all layers share: packed weights, a plan of their few ops, and a team of threads that runs it.

    A layer holds `arrays` (float32, by our tensor names) as they were given, for the soft mixture and `quantized`.
    Calls may come from several threads; they run one after the other.
    """

    def __init__(
        self, ff: FeedForwardSpec, arrays: Mapping[str, Array], width: int, out: int, *, quant: str = "f32",
        nodes: str = "f32", threads: int | None = None, activations: Literal["q8", "q16"] = "q8", batch: int = 512,
    ):  # fmt: skip
        """width, out: numbers that come in and go out. quant: format of the weights; nodes: of a tree's nodes, f32,
        f16 or bf16. activations: what q8 and q4 weights of 32 columns and more are multiplied with, int8 or (q16)
        twice as exact. batch: tokens that are run at once.

        InputError for shapes that contradict each other, and numbers that are not finite.
        """
        if quant not in FORMATS:
            raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(FORMATS)}")
        if nodes not in NODE_FORMATS:
            raise InputError(f"nodes {nodes!r} is not known, expected one of {', '.join(NODE_FORMATS)}")
        if batch < 1:
            raise InputError(f"batch: expected a number from 1, got {batch}")
        shapes = router_tensors(P, ff, width) | feed_forward_tensors(P, ff, width, out)
        self.arrays = {name: _checked(name, arrays, shape) for name, shape in shapes.items()}
        self.ff, self.width, self.out, self.quant = ff, width, out, quant
        self._options: dict[str, Any] = {
            "nodes": nodes, "threads": threads, "activations": activations, "batch": batch,
        }  # fmt: skip
        self.formats = {name: _format(name, quant, nodes) for name in shapes if is_matrix(name)}
        self.weights = ArrayWeights(self.arrays, self.formats)
        self.threads = default_threads() if threads is None else threads
        limits = Limits(1, step=batch, threads=self.threads, activations=activations)
        self._ops = Ops(width, {0: ff}, self.weights, limits, out=out)
        feed_forward(self._ops, 0, None, Target(self._ops.y, STORE, out))
        self._header = np.zeros(len(STEP), np.int64)
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._team: Team | None = None
        self._usage = _Usage(ff)

    @property
    def plan(self) -> Plan:
        """The ops; their kernels are compiled when it is first asked for."""
        if self._plan is None:
            from lapinfer.kernels import library

            kernels = library.load([*{op.kernel for op in self._ops.ops}, "lead", "follow", "read_clock"])
            self._plan, self._team = Plan(self._ops.ops, kernels), Team(self.threads, kernels)
            self.meter = Meter(self._plan, "f32", self._team.ns_per_tick)
        return self._plan

    @property
    def team(self) -> Team:
        assert self.plan is not None
        assert self._team is not None
        return self._team

    def __call__(self, x: Array) -> Array:
        """float32 [T, D] -> [T, out]. InputError for another shape, or numbers that are not finite."""
        x = self._inputs(x)
        y = np.empty((len(x), self.out), np.float32)
        with self._lock:
            plan, team, buffers = self.plan, self.team, self._ops
            step = self._options["batch"]
            for at in range(0, len(x), step):
                piece = x[at : at + step]
                n = len(piece)
                buffers.x[:n, : self.width] = piece
                begin_step(self._header, n)
                self._header[PROBLEM] = 0
                elapsed = team.run(plan, self._header, self.meter.counters)
                if self._header[PROBLEM]:
                    raise InputError("a decision of this layer was not a finite number: its inputs are too large")
                routing = buffers.routing
                nothing = np.zeros(n, np.int64)
                self.meter.record(nothing, nothing, 0, elapsed, routing.distinct, routing.nodes)
                if routing.layers:
                    self._usage.add(routing.chosen[0, :n], routing.path[0, :n])
                y[at : at + n] = buffers.y[:n, : self.out]
        return y

    def quantized(self, quant: str, **options: Any) -> Self:
        """The same layer with its weights in another format; options as of the class."""
        copy = object.__new__(type(self))
        Layer.__init__(copy, self.ff, self.arrays, self.width, self.out, quant=quant, **(self._options | options))
        return copy

    def usage(self) -> dict[str, Any]:
        """Since the layer was made: tokens; for each expert or leaf, and each node of a tree, how many came by."""
        with self._lock:
            return self._usage.arrays()

    def explain(self) -> str:
        """The ops of one token with their bytes and multiply-adds, and the bytes that the layer has in all."""
        with self._lock:
            meter = Meter(self.plan, "f32", self.team.ns_per_tick)
        nothing, active = np.zeros(1, np.int64), np.array([self.ff.active], np.int64)
        tree = self.ff.router.path if isinstance(self.ff.router, TreeSpec) else 0
        meter.record(nothing, nothing, 0, 0, active, np.array([tree], np.int64))
        rows = [(str(r["op"]), str(r["kernel"]), f"{r['bytes']:,}", f"{r['macs']:,}") for r in meter.by_op()]
        table = [("op", "kernel", "bytes", "multiply-adds"), *(row for row in rows if row[2] != "0" or row[3] != "0")]
        table.append(("a token", "", f"{int(meter.bytes.sum()):,}", f"{int(meter.macs.sum()):,}"))
        wide = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}" for a, b, c, d in table]
        return "\n".join([self._title(), *lines, f"resident: {self.weights.nbytes:,} bytes"])

    def _title(self) -> str:
        gated = " gated" if self.ff.gated else ""
        return (
            f"{self.width} to {self.out}, {self.ff.experts} × {self.ff.width} {self.ff.activation}{gated}, {self.quant}"
        )

    def _inputs(self, x: Array) -> Array:
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise InputError(f"the input has shape {x.shape}, expected [T, {self.width}]")
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0, 0])
            raise InputError(f"the input has numbers that are not finite (NaN or infinite), the first in row {row}")
        return x

    def close(self) -> None:
        """Let the team's threads end."""
        if self._team is not None:
            self._team.close()


class Dense(Layer):
    """down · act(up · x), or down · (act(gate · x) · up · x)."""

    def __init__(
        self, up: Array, down: Array, gate: Array | None = None, *, up_bias: Array | None = None,
        down_bias: Array | None = None, gate_bias: Array | None = None, activation: Activation = "silu",
        **options: Any,
    ):  # fmt: skip
        """up, gate [F, D], down [out, F], as torch.nn.Linear has them; biases [F], [F], [out]. options: of Layer."""
        F, D = _shape("up", up, 2)
        out = _shape("down", down, 2)[0]
        ff = FeedForwardSpec(F, activation, gate is not None, down_bias is not None or up_bias is not None)
        first = P + ("gate_up" if gate is not None else "up")
        arrays = {first: up if gate is None else np.concatenate([gate, up]), P + "down": down}
        if ff.bias:
            sides = [up_bias] if gate is None else [gate_bias, up_bias]
            arrays[first + ".bias"] = np.concatenate([_or_zeros(side, F) for side in sides])
            arrays[P + "down.bias"] = _or_zeros(down_bias, out)
        super().__init__(ff, arrays, D, out, **options)


class MoE(Layer):
    """Σ weight · expert(x) over the `top_k` experts that a router chooses (spec.RouterSpec says how)."""

    def __init__(
        self, router: Array, up: Array, down: Array, gate: Array | None = None, *, top_k: int = 2,
        activation: Activation = "silu", router_bias: Array | None = None, score: str = "softmax",
        normalise: bool = True, up_bias: Array | None = None, down_bias: Array | None = None,
        gate_bias: Array | None = None, **options: Any,
    ):  # fmt: skip
        """router [E, D]; up, gate [E, F, D], down [E, out, F]; biases [E], [E, F], [E, out]. options: of Layer."""
        E, F, D = _shape("up", up, 3)
        out = _shape("down", down, 3)[1]
        if not 1 <= top_k <= E:
            raise InputError(f"top_k: expected a number from 1 to {E}, got {top_k}")
        route = RouterSpec(E, top_k, score, normalise, bias=router_bias is not None)  # type: ignore[arg-type]
        biased = down_bias is not None or up_bias is not None
        ff = FeedForwardSpec(F, activation, gate is not None, biased, route)
        arrays = {P + "router": router} | _bank(ff, up, down, gate, up_bias, down_bias, gate_bias)
        if router_bias is not None:
            arrays[P + "router.bias"] = router_bias
        super().__init__(ff, arrays, D, out, **options)


class FFF(Layer):
    """Fast feedforward network (arXiv 2308.14711): a binary tree of nodes, and a leaf, of which one is computed."""

    def __init__(
        self, nodes: Array | None, up: Array, down: Array, gate: Array | None = None, *,
        node_bias: Array | None = None, up_bias: Array | None = None, down_bias: Array | None = None,
        gate_bias: Array | None = None, node_out: Array | None = None, node_out_bias: Array | None = None,
        node_activation: Activation = "relu", trees: int = 1, activation: Activation = "relu",
        master: Mapping[str, Array] | None = None, mix: float | None = None, neurons: bool = False, quant: str = "f32",
        node_format: str = "f32", **options: Any,
    ):  # fmt: skip
        """nodes [N · n, D] in level order (None: no nodes, depth 0), with node_out [N, n] where a node has n neurons;
        up, gate [leaves, F, D], down [leaves, out, F]; biases [N · n], [leaves, F], [leaves, out]. Of several trees,
        one after the other. master: up, down, gate, biases of a leaf that every token gets with weight 1 − σ(mix).
        neurons: UltraFastBERT's trees, up [neurons, 1, D] and down [neurons, out, 1], which have no other nodes.
        """
        E, F, D = _shape("up", up, 3)
        out = _shape("down", down, 3)[1]
        n = 1 if node_out is None else _shape("node_out", node_out, 2)[1]
        rows = 0 if nodes is None else _shape("nodes", nodes, 2)[0]
        depth = _depth(E, trees, neurons, rows, n)
        tree = TreeSpec(depth, trees, n, node_bias is not None, node_activation, neurons, mix is not None)
        biased = any(bias is not None for bias in (up_bias, down_bias, gate_bias))
        shared = 0 if master is None else -(-_shape("master up", master["up"], 2)[0] // F)
        ff = FeedForwardSpec(F, activation, gate is not None, biased, tree, shared)
        if master is not None:
            up, down, gate, up_bias, down_bias, gate_bias = _with_master(
                ff, master, up, down, gate, up_bias, down_bias, gate_bias
            )
        arrays = _bank(ff, up, down, gate, up_bias, down_bias, gate_bias)
        for name, values in (
            ("nodes", nodes), ("nodes.bias", node_bias), ("node_out", node_out), ("node_out.bias", node_out_bias),
            ("mix", None if mix is None else np.array([mix])),
        ):  # fmt: skip
            if values is not None:
                arrays[P + name] = np.asarray(values, np.float32)
        super().__init__(ff, arrays, D, out, quant=quant, nodes=node_format, **options)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], *, prefix: str = "", activation: Activation | None = None, trees: int | None = None,
        without_output_bias: bool = False, **options: Any,
    ) -> FFF:  # fmt: skip
        """A layer of tensors (NumPy's, torch's) by name: those that begin with `prefix`.

        Known are the names of the `fastfeedforward` package (w1s …; relu), of its variant with a master leaf
        (magic_w1 …), of UltraFastBERT (linear_in …; gelu) and of docs/checkpoint-format.md (nodes.weight, up, …).
        activation: none of them stores it. trees: of UltraFastBERT, which does not store it either; by default as few
        as the number of neurons allows. without_output_bias: leaves w2's bias out, as fastfeedforward 0.2.1 does when
        it evaluates, but not when it trains.
        """
        arrays, known = fff_arrays(state, prefix, trees)
        if without_output_bias:
            arrays.pop("down_bias", None)
        return cls(**arrays, activation=activation or known, **options)

    @property
    def tree(self) -> TreeSpec:
        assert isinstance(self.ff.router, TreeSpec)
        return self.ff.router

    def __call__(self, x: Array, mode: Literal["hard", "soft"] = "hard") -> Array:
        """float32 [T, D] -> [T, out]. soft: all leaves, each with its weight in the mixture that training sees."""
        if mode == "hard":
            return super().__call__(x)
        if mode != "soft":
            raise InputError(f"mode {mode!r} is not known, expected hard or soft")
        from lapinfer.soft import soft_forward

        return soft_forward(self.ff, self.tree, self.dequantized(), self._inputs(x), self.out)

    def leaves(self, x: Array) -> Array:
        """The leaf, or neurons, that each token gets, int64 [T, trees (· (depth + 1))]."""
        x, found = self._inputs(x), []
        for at in range(0, len(x), self._options["batch"]):
            piece = x[at : at + self._options["batch"]]
            super().__call__(piece)
            found.append(self._ops.routing.chosen[0, : len(piece)].copy())
        return np.concatenate(found) if found else np.zeros((0, self.tree.top_k), np.int64)

    def dequantized(self) -> dict[str, Array]:
        """The arrays as the kernels see them: rounded to their formats."""
        return {
            name: _rounded(values, self.formats[name]) if name in self.formats else values
            for name, values in self.arrays.items()
        }


class _Usage:
    """Leaves that came by, and how sure the decisions on the way were."""

    def __init__(self, ff: FeedForwardSpec):
        self._router = ff.router
        self._tokens, self._entropy, self._mass = 0, 0.0, 0.0
        self._counts = np.zeros(0 if ff.router is None else ff.router.n_experts, np.int64)

    def add(self, chosen: Array, path: Array) -> None:
        assert self._router is not None
        self._tokens += len(chosen)
        np.add.at(self._counts, chosen[:, : self._router.top_k].reshape(-1), 1)
        if isinstance(self._router, TreeSpec):
            entropy, mass = decisions(path, self._router)
            self._entropy += float(entropy.sum())
            self._mass += float(mass.sum())

    def arrays(self) -> dict[str, Any]:
        found: dict[str, Any] = {"tokens": self._tokens}
        match self._router:
            case RouterSpec():
                found["experts"] = self._counts.copy()
            case TreeSpec(neurons=True):
                found["nodes"] = self._counts.copy()
            case TreeSpec() as tree:
                levels = [self._counts.reshape(tree.trees, -1)]
                while levels[-1].shape[1] > 1:
                    levels.append(levels[-1].reshape(tree.trees, -1, 2).sum(axis=2))
                found["leaves"] = self._counts.copy()
                found["nodes"] = np.concatenate(levels[:0:-1] or [levels[0][:, :0]], axis=1).reshape(-1)
            case _:
                pass
        if isinstance(self._router, TreeSpec):
            found["node_entropy"] = self._entropy / max(self._tokens, 1)
            found["leaf_mass"] = self._mass / max(self._tokens, 1)
        return found


def _shape(name: str, values: Array, dimensions: int) -> tuple[int, ...]:
    shape = np.shape(values)
    if len(shape) != dimensions or 0 in shape:
        raise InputError(f"{name} has shape {shape}, expected {dimensions} dimensions, none of them empty")
    return shape


def _checked(name: str, arrays: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """A tensor as float32, of the shape that the others promise."""
    short = name.removeprefix(P)
    if name not in arrays:
        raise InputError(f"{short} is missing, expected shape {shape}")
    values = np.asarray(arrays[name], np.float32)
    if values.shape != shape:
        raise InputError(f"{short} has shape {values.shape}, the other arrays say {shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{short} has numbers that are not finite (NaN or infinite)")
    return values


def _or_zeros(values: Array | None, size: int) -> Array:
    return np.zeros(size, np.float32) if values is None else np.asarray(values, np.float32)


def _depth(experts: int, trees: int, neurons: bool, rows: int, n: int) -> int:
    """The depth of trees that have so many leaves, or neurons, and so many rows of nodes of n neurons."""
    each = experts // trees if trees > 0 else 0
    size = each + 1 if neurons else each
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
    ff: FeedForwardSpec, up: Array, down: Array, gate: Array | None, up_bias: Array | None, down_bias: Array | None,
    gate_bias: Array | None,
) -> dict[str, Array]:  # fmt: skip
    """Experts' arrays by our names."""
    E, F = up.shape[:2]
    first = np.asarray(up, np.float32)
    if gate is not None:
        if np.shape(gate) != np.shape(up):
            raise InputError(f"gate has shape {np.shape(gate)}, up {np.shape(up)}: expected the same")
        first = np.concatenate([np.asarray(gate, np.float32), first], axis=1)
    last = np.asarray(down, np.float32)
    names = (P + "leaves.inward", P + "leaves.outward") if ff.narrow else (
        P + ("experts.gate_up" if ff.gated else "experts.up"), P + "experts.down"
    )  # fmt: skip
    arrays = {names[0]: first, names[1]: last.transpose(0, 2, 1) if ff.narrow else last}
    if ff.bias:
        sides = [up_bias] if gate is None else [gate_bias, up_bias]
        arrays[names[0] + ".bias"] = np.concatenate([_or_zeros(s, E * F).reshape(E, F) for s in sides], axis=1)
        arrays[names[1] + ".bias"] = _or_zeros(down_bias, E * last.shape[1]).reshape(E, -1)
    return arrays


def _with_master(ff: FeedForwardSpec, master: Mapping[str, Array], *leaves: Array | None) -> list[Array | None]:
    """The leaves' arrays with the master leaf behind them, as so many leaves side by side."""
    names = ("up", "down", "gate", "up_bias", "down_bias", "gate_bias")
    grown: list[Array | None] = []
    for name, values in zip(names, leaves, strict=True):
        there = master.get(name)
        if values is None:
            if there is not None and np.any(there):
                raise InputError(f"the master leaf has {name}, the leaves have none: give them zeros")
            grown.append(None)
            continue
        wide = np.zeros((ff.shared, *np.shape(values)[1:]), np.float32)
        if there is not None and name == "down":
            flat = np.zeros((wide.shape[1], ff.shared * ff.width), np.float32)
            flat[:, : there.shape[1]] = there
            wide[:] = flat.reshape(wide.shape[1], ff.shared, ff.width).transpose(1, 0, 2)
        elif there is not None and name == "down_bias":
            wide[0] = there
        elif there is not None:
            wide.reshape(-1, *wide.shape[2:])[: len(there)] = there
        grown.append(np.concatenate([np.asarray(values, np.float32), wide]))
    return grown


def _format(name: str, quant: str, nodes: str) -> str:
    if is_router(name):
        return nodes if name.endswith("nodes") else "f32"
    return NEAREST.get(quant, quant) if is_row_by_row(name) else quant


def _packed(name: str, values: Array, format: str) -> Array:
    """A matrix [R, C] as the kernels read it."""
    if is_row_by_row(name):
        return pack_rows(format, values)
    return pack(format, take_rows(values, packed_rows(name, len(values))))


def _rounded(values: Array, format: str) -> Array:
    """float32 of what a matrix's numbers become in a format."""
    flat = values.reshape(-1, values.shape[-1])
    if FORMATS[format].grouped:
        return quantize(FORMATS[format].name, flat).weights().reshape(values.shape)
    if format == "f32":
        return values
    return unpack_rows(format, pack_rows(format, flat), flat.shape[1]).reshape(values.shape)
