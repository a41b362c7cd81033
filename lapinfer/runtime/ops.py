"""What every plan is built with: buffers that ops share, and the ops that all kinds of layers use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lapinfer.kernels.operands import (
    ACT_F32,
    ACTIVATION_KINDS,
    F32_TILE_GROUP,
    GATED,
    LAYER,
    NONE,
    ONE,
    PLAIN,
    RMS,
    TILE,
    TILE_GROUP_BYTES,
    TILES,
    TOKENS,
    WANT,
    WANT_TILES,
    KernelId,
)
from lapinfer.options import KVName, Policy
from lapinfer.quant import BAND, GROUP, ROWS
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.cost import FREE, Cost, Steps
from lapinfer.runtime.exchange import Exchange
from lapinfer.runtime.plan import Op, Operand
from lapinfer.runtime.pool import ExpertPool
from lapinfer.runtime.routing_buffers import RoutingBuffers
from lapinfer.runtime.sizes import blocks_in_a_chunk, padded, padded_rows
from lapinfer.spec import FeedForwardSpec, NormSpec
from lapinfer.tensors import layer_prefix

CHUNK = 512
"""Tokens of a prompt that a step takes at most."""


class Weights(Protocol):
    """Packed weights by our tensor names."""

    def tensor(self, name: str) -> np.ndarray: ...

    def format(self, name: str) -> str | None: ...

    @property
    def formats(self) -> Mapping[str, str]:
        """Of all matrices."""
        ...

    def row_blocks(self, name: str) -> int:
        """Blocks of 16 rows that each matrix of a bank has."""
        ...

    def offset(self, name: str) -> int:
        """Byte at which a matrix of a bank begins in each of its experts."""
        ...

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def file_offset(self, bank: str) -> int:
        """Byte at which a bank begins in the file."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What buffers are allocated for: positions per slot, slots, tokens per step, threads, and the KV cache's format.

    wanted: tokens of a step whose logits may be wanted; 0 for all. activations: what quantized weights are
    multiplied with, int8 (q8) or two int8 per number (q16). experts: `resident` with all other weights; of a model that
    is larger than memory, in the `mapped` file, or in a `pool` of `slots_of_pool` slots, which they leave by a policy
    (runtime/pool.py).
    """

    ctx: int
    slots: int = 1
    step: int = CHUNK
    threads: int = 1
    kv: KVName = "f16"
    activations: Literal["q8", "q16"] = "q8"
    experts: Literal["resident", "mapped", "pool"] = "resident"
    slots_of_pool: int = 0
    policy: Policy = "lrfu"
    wanted: int = 0

    @property
    def most_wanted(self) -> int:
        return min(self.wanted or self.step, self.step)


class Ops:
    """Collects ops over buffers that all layers share; buffers that the model at hand does not need are empty.

    x: the residual stream, float32 [T, hidden]. y: what a norm, or the caller, reads next. tiles, hidden_tiles:
    activations.
    """

    def __init__(
        self, hidden: int, feed_forwards: Mapping[int, FeedForwardSpec], weights: Weights, limits: Limits, *,
        out: int = 0, widths: Iterable[int] = (), scratch: int = 0,
    ):  # fmt: skip
        """out: width of the result, if not `hidden`. widths: of other inputs of matrices. scratch: floats that a thread
        needs for other ops."""
        self.hidden, self.weights, self.limits = hidden, weights, limits
        self.feed_forwards = dict(feed_forwards)
        self.ops: list[Op] = []
        self.pool: ExpertPool | None = None
        self.exchange: Exchange | None = None
        T, D = padded(limits.step, TILE), padded(max(hidden, out))
        self.x = zeros((T, D))
        self.y = zeros((T, D))
        inputs = max([hidden, *widths, *(ff.width for ff in self.feed_forwards.values())])
        self.tiles = zeros((T // TILE, padded(inputs, 2 * GROUP) // GROUP, F32_TILE_GROUP), np.uint8)
        self.hidden_tiles = zeros(self.tiles.shape, np.uint8)
        self.routing = RoutingBuffers.for_layers(hidden, self.feed_forwards, T)
        leaves = max((TILE * D + padded(2 * ff.width) + GROUP for ff in self.feed_forwards.values() if ff.narrow),
                     default=0)  # fmt: skip
        route = 3 * padded(max((ff.experts for ff in self.feed_forwards.values()), default=0))
        needed = max(TILE * 2 * BAND * ROWS, leaves, route, scratch)
        self.scratch = zeros((limits.threads, padded(needed, GROUP)))

    def vector(self, name: str, width: int, offset: float = 0.0) -> np.ndarray:
        """A float32 vector, or one of each expert [E, width], padded with zeros to whole groups."""
        with np.errstate(all="ignore"):  # what is no number is found where it is computed with
            return padded_rows(self.weights.tensor(name) + np.float32(offset), width)

    def add(
        self, kernel: str | KernelId, label: str, part: str, layer: int, count: int, times: int, *, cost: Cost = FREE,
        shape: str = "", packed: np.ndarray | None = None, after: Callable[[], None] | None = None,
        **operands: Operand | None,
    ) -> None:  # fmt: skip
        """Add an op (runtime/plan.Op describes the arguments). An operand that is None becomes 0: there is no array."""
        kernel = KernelId(kernel) if isinstance(kernel, str) else kernel
        given = {name: 0 if value is None else value for name, value in operands.items()}
        self.ops.append(Op(kernel, label, part, layer, count, times, given, cost, shape, packed, after))

    # ---- the ops ----

    def norm_weight(self, name: str, width: int, norm: NormSpec) -> np.ndarray:
        """What a norm multiplies with: ones, where it has no weights."""
        return self.vector(name, width, norm.offset) if norm.weight else padded_rows(np.ones(width, np.float32), width)

    def _norm_operands(self, name: str, norm: NormSpec | None, width: int) -> dict[str, Any]:
        if norm is None:
            return {"weight": 0, "bias": 0, "eps": 0.0, "norm": NONE, "width": width}
        return {
            "weight": self.norm_weight(f"{name}.weight", width, norm),
            "bias": self.vector(f"{name}.bias", width) if norm.bias else 0,
            "eps": norm.eps,
            "norm": RMS if norm.kind == "rms" else LAYER,
            "width": width,
        }

    def norm(
        self, name: str, norm: NormSpec | None, layer: int, part: str, kind: int, wanted: np.ndarray | None = None,
        exact: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Norm of the residual stream into `tiles`, and in float32 into `exact`; `wanted`: only of these rows."""
        self.norm_of(self.x, name, norm, self.hidden, layer, part, kind, wanted, exact)

    def norm_of(
        self, x: np.ndarray, name: str, norm: NormSpec | None, width: int, layer: int, part: str, kind: int,
        wanted: np.ndarray | None = None, exact: np.ndarray | None = None, out: np.ndarray | Literal[0] | None = None,
        again: bool = False,
    ) -> None:  # fmt: skip
        """The same of the first columns of any float32 [T, ≥ width], into other tiles (0: into none).

        again: the layer has read the same weights before.
        """
        self.add(
            "norm", name.removeprefix(layer_prefix(layer)), part, layer, TILES if wanted is None else WANT_TILES, 1,
            x=x, x_stride=x.strides[0], rows=wanted,
            tokens=TOKENS if wanted is None else WANT,
            out=self.tiles if out is None else out, groups=padded(width) // GROUP, out_kind=kind,
            exact=exact, **self._norm_operands(name, norm, width),
            cost=FREE if again else norm_cost(norm, width, "all" if wanted is None else "wanted"),
        )  # fmt: skip

    def add_norm(self, name: str, norm: NormSpec | None, layer: int, part: str, scale: float) -> None:
        """The residual stream += scale · norm(y)."""
        self.add(
            "add_norm", name.removeprefix(layer_prefix(layer)), part, layer, TILES, 1,
            y=self.y, y_stride=self.y.strides[0], x=self.x, x_stride=self.x.strides[0], scale=scale,
            **self._norm_operands(name, norm, self.hidden), cost=norm_cost(norm, self.hidden),
        )  # fmt: skip

    def matmul(
        self, name: str, layer: int, part: str, x: np.ndarray, mode: int, *, logical: tuple[int, int],
        label: str = "", out: np.ndarray | None = None, bias: np.ndarray | None = None, scale: float = 1.0,
        softcap: float = 0.0, activation: int = 0, curve: np.ndarray | None = None, out_kind: int = 0, count: int = ONE,
        block_max: np.ndarray | None = None, out_step: int = 0, cost: Cost | None = None,
    ) -> None:  # fmt: skip
        """A matrix, or n of one shape [n, …], each with its own columns of x and of out, `out_step` apart.

        logical: rows and columns without padding. count: the field of the step header that says whether it runs. cost:
        of matrices that give logits, and so take only the tokens whose logits are wanted.
        """
        weights = self.weights.tensor(name)
        *several, blocks, row_block_bytes = weights.shape
        copies = several[0] if several else 1
        groups = padded(logical[1]) // GROUP
        if copies * groups > x.shape[1]:
            raise ValueError(f"{name}: reads {copies * groups} groups of {x.shape[1]}")
        least = {GATED: 4, PLAIN: 2}.get(mode, 1)
        unit = blocks_in_a_chunk(blocks, row_block_bytes, least)
        tiled = mode in (GATED, PLAIN)
        target = self.hidden_tiles if tiled else out
        assert target is not None
        chunks, group_bytes = -(-blocks // unit), TILE_GROUP_BYTES[self.activation_kind(name)]
        self.add(
            self.kernel("matmul", name), label or name.removeprefix(layer_prefix(layer)), part, layer,
            count, copies * chunks,
            weights=weights, row_blocks=blocks, groups=groups, unit=unit, x=x,
            tile_bytes=copies * groups * group_bytes, chunks=chunks, weights_step=blocks * row_block_bytes,
            x_step=groups * group_bytes, out_step=out_step,
            tokens=TOKENS if cost is None else WANT, mode=mode, out=target,
            out_stride=0 if tiled else target.strides[0],
            bias=bias, scale=scale, softcap=softcap, activation=activation, curve=curve,
            out_groups=copies * blocks // least if tiled else 0, out_kind=out_kind,
            block_max=block_max, scratch=self.scratch,
            scratch_stride=self.scratch.strides[0],
            cost=cost or Cost(
                weight_bytes=weights.nbytes + (0 if bias is None else 4 * logical[0]),
                macs=copies * logical[0] * logical[1],
            ),
            shape=f"{copies * logical[0]} × {logical[1]}",
        )  # fmt: skip

    def kernel(self, kind: str, name: str) -> KernelId:
        """The kernel of a kind that multiplies a matrix."""
        return KernelId(kind, self.format(name), ACTIVATION_KINDS[self.activation_kind(name)])

    def format(self, name: str) -> str:
        """The weight format of a matrix."""
        fmt = self.weights.format(name)
        assert fmt is not None, name
        return fmt

    def activation_kind(self, name: str) -> int:
        """The kind of activations that a matrix multiplies."""
        if FORMATS[self.format(name)].activation == "f32":
            return ACT_F32
        return ACTIVATION_KINDS.index(self.limits.activations)


def norm_cost(norm: NormSpec | None, width: int, steps: Steps = "all") -> Cost:
    """Of norms of `width` numbers in all."""
    bytes = 0 if norm is None else 4 * width * (norm.weight + norm.bias)
    return Cost(bytes, steps=steps) if bytes else FREE
