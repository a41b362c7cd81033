"""What all layers share: arrays packed in memory, a few ops with their runner, and the checks of what comes in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np

from lapinfer.arguments import check_options, float_array, whole
from lapinfer.errors import InputError
from lapinfer.kernels.operands import ACTIVATIONS, PROBLEM, STORE
from lapinfer.machine import default_threads
from lapinfer.options import MOST_THREADS
from lapinfer.packing.entries import PackedEntry, pack_matrix
from lapinfer.packing.memory import MemoryWeights
from lapinfer.quant.choice import ROUTERS, narrow_format
from lapinfer.quant.format import ROWS
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.quantize import quantize
from lapinfer.quant.rows import pack_rows, unpack_rows
from lapinfer.runtime.build.feed_forward import feed_forward
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.build.trees import Before, Target
from lapinfer.runtime.ops import Limits, Ops
from lapinfer.runtime.routing import decisions
from lapinfer.runtime.runner import Runner
from lapinfer.spec import FeedForwardSpec, RouterSpec, TreeSpec
from lapinfer.tensors import Tensor, feed_forward_tensors, layer_prefix, router_tensors

Array = np.ndarray
PADDING_TOLD = 0.02
"""Share of a layer's bytes."""
OPTIONS = ("quant", "nodes", "threads", "activations", "batch")
P = layer_prefix(0)
"""What the names of a layer's tensors begin with, as in a model of one layer."""


def layer_tensors(ff: FeedForwardSpec, width: int, out: int) -> dict[str, Tensor]:
    """The tensors of a layer by name, as those of a model's layer 0."""
    return {tensor.name: tensor for tensor in (*router_tensors(0, ff, width), *feed_forward_tensors(0, ff, width, out))}


def matrix_names(ff: FeedForwardSpec) -> tuple[str, str]:
    """Names of the first and the second matrix: the dense ones, or those of experts or of narrow leaves."""
    if ff.narrow:
        return P + "leaves.inward", P + "leaves.outward"
    prefix = P if ff.router is None else P + "experts."
    return prefix + first_matrix(ff)[0], prefix + "down"


def packed_weights(tensors: Iterable[Tensor], arrays: Mapping[str, Array], formats: Mapping[str, str]) -> MemoryWeights:
    """Float32 arrays, by our tensor names, packed as the kernels read them."""

    def packed(entry: PackedEntry) -> Array:
        values, format = arrays[entry.name], entry.format
        if format is None:
            return np.asarray(values, np.float32)
        if values.ndim == 2:
            return pack_matrix(entry.tensor, format, values)
        return np.stack([pack_matrix(entry.tensor, format, matrix) for matrix in values])

    return MemoryWeights(tensors, formats, packed)


class Layer:
    """A feed-forward with packed weights, a few ops, and a runner that runs them on a team of threads.

    A layer keeps `arrays` (float32, by our tensor names) as they were given, for the soft mixture and `quantized`.
    It may be called from several threads; calls run one after the other.
    """

    def __init__(
        self, ff: FeedForwardSpec, arrays: Mapping[str, Array], width: int, out: int, *, quant: str = "f32",
        nodes: str = "f32", threads: int | None = None, activations: Literal["q8", "q16"] = "q8", batch: int = 512,
        **unknown: Any,
    ):  # fmt: skip
        """width, out: width of the inputs and of the outputs. quant: format of the weights. nodes: format of a tree's
        nodes, f32, f16 or bf16. activations: what q8 and q4 weights of at least 32 columns are multiplied with: q8
        (int8), or q16 (two int8 per number). batch: tokens that run at once.

        InputError for shapes that contradict each other, and for numbers that are not finite.
        """
        check_options(unknown, OPTIONS, "a layer")
        if quant not in tuple(FORMATS):
            raise InputError(f"quant {quant!r} is not known, expected one of {', '.join(FORMATS)}")
        if nodes not in tuple(ROUTERS):
            raise InputError(f"nodes {nodes!r} is not known, expected one of {', '.join(ROUTERS)}")
        if activations not in ("q8", "q16"):
            raise InputError(f"activations {activations!r} is not known, expected q8 or q16")
        batch = whole("batch", batch, 1)
        if threads is not None:
            threads = whole("threads", threads, 1, MOST_THREADS)
        check_activation("activation", ff.activation, ff.gated)
        tensors = layer_tensors(ff, width, out)
        self.arrays = {name: _checked(name, arrays, tensor.shape) for name, tensor in tensors.items()}
        self.ff, self.width, self.out, self.quant = ff, width, out, quant
        self._options: dict[str, Any] = {
            "nodes": nodes, "threads": threads, "activations": activations, "batch": batch,
        }  # fmt: skip
        self.formats = {name: _format(t, quant, nodes) for name, t in tensors.items() if t.is_matrix}
        self.weights = packed_weights(tensors.values(), self.arrays, self.formats)
        self.threads = default_threads() if threads is None else threads
        limits = Limits(1, step=batch, threads=self.threads, activations=activations)
        self._ops = Ops(width, {0: ff}, self.weights, limits, out=out)
        feed_forward(self._ops, 0, Before(None), Target(self._ops.y, STORE, out))
        self._lock = threading.RLock()
        self._runner: Runner | None = None
        self._closed = False
        self._usage = Usage(ff)

    @property
    def runner(self) -> Runner:
        """Runs the layer's ops; kernels are compiled when it is first used."""
        if self._closed:
            raise InputError("this layer is closed; make it again")
        if self._runner is None:
            self._runner = Runner(self._ops.ops, self.threads)
        return self._runner

    def __call__(self, x: Array) -> Array:
        """float32 [T, D] -> [T, out]. InputError for another shape, or numbers that are not finite."""
        x = self._inputs(x)
        y = np.empty((len(x), self.out), np.float32)
        with self._lock:
            runner, buffers, batch = self.runner, self._ops, self._options["batch"]
            for start in range(0, len(x), batch):
                n = min(batch, len(x) - start)
                buffers.x[:n, : self.width] = x[start : start + n]
                runner.begin(n)
                runner.words[PROBLEM] = 0
                elapsed = runner.run()
                if runner.words[PROBLEM]:
                    raise InputError("a decision of this layer was not a finite number: its inputs are too large")
                routing = buffers.routing
                nothing = np.zeros(n, np.int64)
                runner.meter.record(nothing, nothing, 0, elapsed, routing.distinct, routing.nodes)
                if routing.layers:
                    self._usage.add(routing.chosen[0, :n], routing.path[0, :n])
                y[start : start + n] = buffers.y[:n, : self.out]
        return y

    def quantized(self, quant: str, **options: Any) -> Self:
        """The same layer with its weights in another format; options: those of the class."""
        copy = object.__new__(type(self))
        ff, arrays = self._arranged_for(quant)
        Layer.__init__(copy, ff, arrays, self.width, self.out, quant=quant, **(self._options | options))
        return copy

    def _arranged_for(self, quant: str) -> tuple[FeedForwardSpec, dict[str, Array]]:
        """Spec and arrays in the arrangement that a format needs."""
        return self.ff, self.arrays

    def usage(self) -> dict[str, Any]:
        """Since the layer was created: tokens, and how many of them visited each expert or leaf, and each node."""
        with self._lock:
            return self._usage.arrays()

    def explain(self) -> str:
        """The ops of one token with their bytes and multiply-adds, and the bytes of the whole layer."""
        with self._lock:
            meter = self.runner.new_meter()
        zero, active = np.zeros(1, np.int64), np.array([self.ff.active], np.int64)
        nodes = self.ff.router.path if isinstance(self.ff.router, TreeSpec) else 0
        meter.record(zero, zero, 0, 0, active, np.array([nodes], np.int64))
        rows = [(str(r["op"]), str(r["kernel"]), f"{r['bytes']:,}", f"{r['macs']:,}") for r in meter.by_op()]
        table = [("op", "kernel", "bytes", "multiply-adds"), *(row for row in rows if row[2] != "0" or row[3] != "0")]
        table.append(("a token", "", f"{int(meter.bytes.sum()):,}", f"{int(meter.macs.sum()):,}"))
        w = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [f"{op:<{w[0]}}  {kernel:<{w[1]}}  {size:>{w[2]}}  {macs:>{w[3]}}" for op, kernel, size, macs in table]
        return "\n".join([self._title(), *lines, f"resident: {self.weights.nbytes:,} bytes{self._padding()}"])

    def _padding(self) -> str:
        """How much of the layer fills up rows and columns, if that is much: who counts bytes by hand misses it."""
        own = 0.0
        for name, array in self.arrays.items():
            form = FORMATS[self.formats.get(name, "f32")]
            across = array.shape[-2] if name.endswith("leaves.outward") else array.shape[-1]  # kept by neuron
            own += array.size * (form.bits + form.head_bytes * 8 / ROWS / across) / 8
        share = 1 - own / self.weights.nbytes
        return f", {share:.0%} of them padding: blocks have 16 rows × 32 columns" if share > PADDING_TOLD else ""

    def _title(self) -> str:
        gated = " gated" if self.ff.gated else ""
        return (
            f"{self.width} to {self.out}, {self.ff.experts} × {self.ff.width} {self.ff.activation}{gated}, {self.quant}"
        )

    def _inputs(self, x: Array) -> Array:
        x = float_array("x", x)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise InputError(f"the input has shape {x.shape}, expected [T, {self.width}]")
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0, 0])
            raise InputError(f"the input has numbers that are not finite (NaN or infinite), the first in row {row}")
        return x

    def close(self) -> None:
        """Let the team's threads end; calls after that are refused."""
        with self._lock:
            self._closed = True
            if self._runner is not None:
                self._runner.close()


class Usage:
    """Experts, leaves and nodes that tokens visited, and how sure the decisions were."""

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
        counted: dict[str, Any] = {"tokens": self._tokens}
        match self._router:
            case RouterSpec():
                counted["experts"] = self._counts.copy()
            case TreeSpec(neurons=True):
                counted["nodes"] = self._counts.copy()
            case TreeSpec() as tree:
                levels = [self._counts.reshape(tree.trees, -1)]
                while levels[-1].shape[1] > 1:
                    levels.append(levels[-1].reshape(tree.trees, -1, 2).sum(axis=2))
                counted["leaves"] = self._counts.copy()
                counted["nodes"] = np.concatenate(levels[:0:-1] or [levels[0][:, :0]], axis=1).reshape(-1)
            case _:
                pass
        if isinstance(self._router, TreeSpec):
            counted["node_entropy"] = self._entropy / max(self._tokens, 1)
            counted["leaf_mass"] = self._mass / max(self._tokens, 1)
        return counted


def check_activation(what: str, name: str, gated: bool) -> None:
    """InputError for a name that the kernels do not know, and for one that needs a gate."""
    accepted = [a for a in ACTIVATIONS if a != "xielu" and (gated or a != "swiglu_oai")]
    if name not in accepted:
        raise InputError(
            f"{what} {name!r} is not known{'' if gated else ' without a gate'}, expected {', '.join(accepted)}"
        )


def _checked(name: str, arrays: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """A tensor as float32, of the shape that the other arrays imply."""
    short = name.removeprefix(P)
    if name not in arrays:
        raise InputError(f"{short} is missing, expected shape {shape}")
    values = float_array(short, arrays[name])
    if values.shape != shape:
        raise InputError(f"{short} has shape {values.shape}, the other arrays say {shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{short} has numbers that are not finite (NaN or infinite)")
    return values


def _format(tensor: Tensor, quant: str, nodes: str) -> str:
    if tensor.role == "router":
        return nodes if tensor.packing == "rows" else "f32"
    return narrow_format(quant) if tensor.packing == "rows" else quant


def rounded(values: Array, format: str) -> Array:
    """float32 of a matrix after it was rounded to a format."""
    flat = values.reshape(-1, values.shape[-1])
    if FORMATS[format].grouped:
        return quantize(format, flat).weights().reshape(values.shape)
    if format == "f32":
        return values
    return unpack_rows(format, pack_rows(format, flat), flat.shape[1]).reshape(values.shape)
