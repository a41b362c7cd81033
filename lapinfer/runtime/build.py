"""From a spec and packed weights to a plan: the one place that says which ops a model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q16,
    ACTIVATION_KINDS,
    ADD,
    ANY_WANT,
    F32_TILE_GROUP,
    GATED,
    HEAD,
    ITEM,
    KEY_BLOCK,
    LAYER,
    NONE,
    ONE,
    PARTIAL_EXTRA,
    PLAIN,
    RMS,
    STEP,
    STORE,
    TILE,
    TILE_GROUP_BYTES,
    TILES,
    TOKENS,
    WANT,
    WANT_TILES,
)
from lapinfer.quant import BAND, FORMATS, GROUP, ROWS
from lapinfer.runtime.build_attention import attention
from lapinfer.runtime.build_convolution import convolution, gates_width
from lapinfer.runtime.build_feed_forward import feed_forward, routed_feed_forward
from lapinfer.runtime.kv import KVName, LayerCache, lanes
from lapinfer.runtime.plan import Op
from lapinfer.runtime.pool import ExpertPool, Policy
from lapinfer.runtime.routed import RoutingBuffers
from lapinfer.runtime.sizes import blocks_in_a_chunk, packed_blocks, padded, padded_vector
from lapinfer.spec import ConvolutionSpec, ModelSpec, NormSpec, RopeSpec

ATTENTION_ROWS = 4
"""Query rows of a register tile in kernels/attention.py."""


class Weights(Protocol):
    """Packed weights by our tensor names."""

    def tensor(self, name: str) -> np.ndarray: ...

    def format(self, name: str) -> str | None: ...

    def offset(self, name: str) -> int:
        """Where a matrix of a bank begins in each of its experts."""
        ...

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def file_offset(self, bank: str) -> int:
        """Where a bank begins in the file."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What buffers are allocated for: positions a slot, slots, tokens a step, threads, and the KV cache's numbers.

    `activations`: what q8 and q4 weights are multiplied with, int8 (q8) or twice as exact (q16). `experts`: of a model
    that is larger than memory, in the `mapped` file, or in a `pool` of so many slots, which they leave by a policy;
    `hints`: ask the system for what the next layer will likely choose (runtime/pool.py).
    """

    ctx: int
    slots: int = 1
    step: int = 512
    threads: int = 1
    kv: KVName = "f16"
    activations: Literal["q8", "q16"] = "q8"
    experts: Literal["resident", "mapped", "pool"] = "resident"
    slots_of_pool: int = 0
    policy: Policy = "lrfu"
    hints: bool = False


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What a step writes before it runs the plan, and the logits it leaves."""

    header: np.ndarray
    token: np.ndarray
    slot: np.ndarray
    pos: np.ndarray
    want: np.ndarray
    items: np.ndarray
    part: np.ndarray
    partials: int
    logits: np.ndarray
    block_max: np.ndarray


@dataclass(frozen=True, slots=True)
class Built:
    """Ops, and the buffers that they and the step share."""

    ops: list[Op]
    step: StepBuffers
    caches: list[LayerCache]
    routing: RoutingBuffers
    pool: ExpertPool | None


def partials(limits: Limits) -> int:
    """How many attention partials the buffer for them holds."""
    blocks = padded(limits.ctx, KEY_BLOCK) // KEY_BLOCK
    return max(padded(limits.step, TILE), 2 * TILE, TILE * blocks)


def context_bytes(spec: ModelSpec, limits: Limits) -> int:
    """Bytes of the buffers, other than the KV cache, that grow with the context: rotary tables and partials."""
    ropes = sum(4 * limits.ctx * rope.dim for rope in {a.rope for a in spec.attentions if a.rope is not None})
    heads, width = partial_row(spec)
    return ropes + 4 * partials(limits) * heads * width


def partial_row(spec: ModelSpec) -> tuple[int, int]:
    """Heads of an attention partial, and float32 of each, in the buffer that all layers share."""
    heads = max((a.n_heads for a in spec.attentions), default=0)
    return heads, max((lanes(a.v_dim) for a in spec.attentions), default=0) + PARTIAL_EXTRA


class Builder:
    """Collects ops; buffers are shared by all layers."""

    def __init__(self, spec: ModelSpec, weights: Weights, limits: Limits):
        self.spec, self.weights, self.limits = spec, weights, limits
        self.ops: list[Op] = []
        T, D = padded(limits.step, TILE), padded(spec.hidden)
        self.x = np.zeros((T, D), np.float32)
        self.y = np.zeros((T, D), np.float32)
        attentions = spec.attentions
        widths = [padded(a.qkv_rows) for a in attentions]
        widths += [gates_width(spec.hidden) for layer in spec.layers if layer.convolution is not None]
        self.qkv = np.zeros((T, max(widths)), np.float32)
        latent = [a for a in attentions if a.latent is not None]
        self.q = np.zeros((T, max((padded(a.q_rows) for a in latent), default=0)), np.float32)
        self.query = np.zeros((T, max((padded(a.n_heads * a.k_dim) for a in latent), default=0)), np.float32)
        feed_forwards = [layer.feed_forward for layer in spec.layers]
        inputs = [D, *(a.n_heads * a.v_dim for a in attentions), *(ff.width for ff in feed_forwards)]
        inputs += [a.n_heads * padded(a.latent.nope) for a in latent if a.latent]
        inputs += [a.latent.q_rank for a in latent if a.latent]
        self.tiles = np.zeros((T // TILE, padded(max(inputs), 2 * GROUP) // GROUP, F32_TILE_GROUP), np.uint8)
        self.hidden_tiles = np.zeros_like(self.tiles)
        self.routing = RoutingBuffers.for_spec(spec, limits)
        self.pool = self._pool()
        self.scratch = np.zeros((limits.threads, self._scratch_floats()), np.float32)
        count = partials(limits)
        self.partial = np.zeros((count, *partial_row(spec)), np.float32)
        V = padded(spec.vocab, ROWS)
        self.step = StepBuffers(
            header=np.zeros(len(STEP), np.int64),
            token=np.zeros(T, np.int64),
            slot=np.zeros(T, np.int64),
            pos=np.zeros(T, np.int64),
            want=np.zeros(T, np.int64),
            items=np.zeros((count, len(ITEM)), np.int64),
            part=np.zeros((T, 2), np.int64),
            partials=count,
            logits=np.empty((T, V), np.float32),
            block_max=np.empty((T, V // ROWS), np.float32),
        )
        self.ropes: dict[RopeSpec, np.ndarray] = {}
        self.caches: list[LayerCache] = []

    def _scratch_floats(self) -> int:
        """Floats of scratch that one thread needs for its largest op."""
        matmul = TILE * 2 * BAND * ROWS
        route = 3 * padded(max(layer.feed_forward.experts for layer in self.spec.layers))
        most = [matmul, route]
        for a in self.spec.attentions:
            queries = (TILE * a.n_heads // a.n_kv_heads + 2 * ATTENTION_ROWS) * a.k_dim
            most.append(queries + ATTENTION_ROWS * (KEY_BLOCK + lanes(a.v_dim) + 2))
            most.append(padded(a.n_heads * a.v_dim) + ROWS)  # merge
            most.append(padded(a.k_dim) + padded(a.q_rows))  # latents
        return padded(max(most), 32)

    def vector(self, name: str, width: int, offset: float = 0.0) -> np.ndarray:
        """A float32 vector, padded with zeros to whole groups."""
        return padded_vector(self.weights.tensor(name) + np.float32(offset), width)

    def add(self, kernel: str, label: str, part: str, layer: int, count: int, times: int, **operands) -> Op:
        extra = {key: operands.pop(key) for key in ("weight_bytes", "macs", "notes") if key in operands}
        op = Op(kernel, label, part, layer, count, times, operands, **extra)
        self.ops.append(op)
        return op

    # ---- the ops ----

    def embed(self) -> None:
        table, fmt = self.weights.tensor("embed"), FORMATS[self.format("embed")]
        positions: np.ndarray | int = 0
        if self.spec.positions:
            positions = np.zeros((self.spec.positions, padded(self.spec.hidden)), np.float32)
            positions[:, : self.spec.hidden] = self.weights.tensor("positions")
        self.add(
            "embed", "embed", "embedding", -1, TILES, 1,
            weights=table, format=list(FORMATS).index(fmt.name), row_blocks=len(table),
            groups=padded(self.spec.hidden) // GROUP, head_bytes=fmt.head_bytes, block_bytes=fmt.block_bytes,
            token=self.step.token, pos=self.step.pos, positions=positions,
            scale=self.spec.embed_scale, out=self.x, out_stride=self.x.strides[0],
            notes={"row_bytes": table.shape[1] // ROWS + (4 * self.spec.hidden if self.spec.positions else 0)},
        )  # fmt: skip

    def _norm_operands(self, name: str, norm: NormSpec | None, width: int) -> dict:
        if norm is None:
            return {"weight": 0, "bias": 0, "eps": 0.0, "norm": NONE, "width": width, "weight_bytes": 0}
        return {
            "weight": self.vector(f"{name}.weight", width, norm.offset),
            "bias": self.vector(f"{name}.bias", width) if norm.bias else 0,
            "eps": norm.eps,
            "norm": RMS if norm.kind == "rms" else LAYER,
            "width": width,
            "weight_bytes": 4 * width * (2 if norm.bias else 1),
        }

    def norm(
        self, name: str, norm: NormSpec | None, layer: int, part: str, kind: int, wanted: bool = False,
        exact: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Norm of the residual stream into `tiles`, in float32 into `exact`; only of wanted tokens before the head."""
        self.norm_of(self.x, name, norm, self.spec.hidden, layer, part, kind, wanted, exact)

    def norm_of(
        self, x: np.ndarray, name: str, norm: NormSpec | None, width: int, layer: int, part: str, kind: int,
        wanted: bool = False, exact: np.ndarray | None = None, out: np.ndarray | None = None, label: str = "",
    ) -> None:  # fmt: skip
        """The same of the first columns of any float32 [T, ≥ width], and to other tiles."""
        self.add(
            "norm", label or name.rsplit(".", 1)[-1], part, layer, WANT_TILES if wanted else TILES, 1,
            x=x, x_stride=x.strides[0], rows=self.step.want if wanted else 0, tokens=WANT if wanted else TOKENS,
            out=self.tiles if out is None else out, groups=padded(width) // GROUP, out_kind=kind,
            exact=0 if exact is None else exact, **self._norm_operands(name, norm, width),
        )  # fmt: skip

    def add_norm(self, name: str, norm: NormSpec, layer: int, part: str, scale: float) -> None:
        self.add(
            "add_norm", name.rsplit(".", 1)[-1], part, layer, TILES, 1,
            y=self.y, y_stride=self.y.strides[0], x=self.x, x_stride=self.x.strides[0], scale=scale,
            **self._norm_operands(name, norm, self.spec.hidden),
        )  # fmt: skip

    def matmul(
        self, name: str, layer: int, part: str, x: np.ndarray, mode: int, *, logical: tuple[int, int],
        label: str = "", out: np.ndarray | None = None, bias: np.ndarray | None = None, scale: float = 1.0,
        softcap: float = 0.0, activation: int = 0, out_kind: int = 0, wanted: bool = False,
        block_max: np.ndarray | None = None, out_step: int = 0,
    ) -> None:  # fmt: skip
        """A matrix, or several of one shape [n, …], each for its own columns of x and of out (out_step apart)."""
        weights, fmt = self.weights.tensor(name), self.format(name)
        *several, blocks, row_block_bytes = weights.shape
        copies = several[0] if several else 1
        groups = padded(logical[1]) // GROUP
        least = {GATED: 4, PLAIN: 2}.get(mode, 1)
        unit = blocks_in_a_chunk(blocks, row_block_bytes, least)
        tiled = mode in (GATED, PLAIN)
        target = self.hidden_tiles if tiled else out
        assert target is not None
        chunks, group_bytes = -(-blocks // unit), TILE_GROUP_BYTES[self.wants(name)]
        self.add(
            self.kernel("matmul", name), label or name.rsplit(".", 1)[-1], part, layer,
            ANY_WANT if wanted else ONE, copies * chunks,
            weights=weights, row_blocks=blocks, groups=groups, unit=unit, x=x,
            tile_bytes=copies * groups * group_bytes, chunks=chunks, weights_step=blocks * row_block_bytes,
            x_step=groups * group_bytes, out_step=out_step,
            tokens=WANT if wanted else TOKENS, mode=mode, out=target, out_stride=0 if tiled else target.strides[0],
            bias=0 if bias is None else bias, scale=scale, softcap=softcap, activation=activation,
            out_groups=copies * blocks // least if tiled else 0, out_kind=out_kind,
            block_max=0 if block_max is None else block_max, scratch=self.scratch,
            scratch_stride=self.scratch.strides[0],
            weight_bytes=weights.nbytes + (0 if bias is None else 4 * logical[0]),
            macs=copies * logical[0] * logical[1],
            notes={"format": fmt, "shape": (copies * logical[0], logical[1])},
        )  # fmt: skip

    def kernel(self, kind: str, name: str) -> str:
        """The kernel that multiplies a matrix."""
        return f"{kind}_{self.format(name)}{'_q16' if self.wants(name) == ACT_Q16 else ''}"

    def format(self, name: str) -> str:
        """The weight format of a matrix."""
        fmt = self.weights.format(name)
        assert fmt is not None, name
        return fmt

    def wants(self, name: str) -> int:
        """The kind of activations that a matrix multiplies."""
        if FORMATS[self.format(name)].activation == "f32":
            return ACT_F32
        return ACTIVATION_KINDS.index(self.limits.activations)

    def sublayer_end(
        self, name: str, post_name: str, post: NormSpec | None, layer: int, part: str, x: np.ndarray,
        bias: np.ndarray | None, logical: tuple[int, int],
    ) -> None:  # fmt: skip
        """The matrix that returns to the residual stream, and the norm behind it where there is one."""
        scale = self.spec.layers[layer].residual_scale
        if post is None:
            self.matmul(name, layer, part, x, ADD, out=self.x, bias=bias, scale=scale, logical=logical)
        else:
            self.matmul(name, layer, part, x, STORE, out=self.y, bias=bias, logical=logical)
            self.add_norm(post_name, post, layer, part, scale)

    def head(self) -> None:
        spec, name = self.spec, "embed" if self.spec.tied else "head"
        rows = padded(spec.vocab, ROWS)
        bias = None
        if spec.head_bias or rows != spec.vocab:  # rows that are no tokens can never be the maximum
            bias = np.full(rows, -np.inf, np.float32)
            bias[: spec.vocab] = self.weights.tensor("head.bias") if spec.head_bias else 0.0
        self.norm("norm", spec.norm, -1, "head", self.wants(name), wanted=True)
        self.matmul(
            name, -1, "head", self.tiles, HEAD, label="head", out=self.step.logits, bias=bias, scale=spec.logit_scale,
            softcap=spec.logit_softcap or 0.0, wanted=True, block_max=self.step.block_max,
            logical=(spec.vocab, spec.hidden),
        )  # fmt: skip

    def build(self) -> Built:
        self.embed()
        for i, layer in enumerate(self.spec.layers):
            if isinstance(layer.mixer, ConvolutionSpec):
                convolution(self, i, layer.mixer, layer.attn_norm, layer.attn_post_norm)
            else:
                attention(self, i, layer.mixer, layer.attn_norm, layer.attn_post_norm)
            if layer.feed_forward.router is None:
                feed_forward(self, i, layer)
            else:
                routed_feed_forward(self, i, layer)
        self.head()
        return Built(self.ops, self.step, self.caches, self.routing, self.pool)

    def _pool(self) -> ExpertPool | None:
        """Where experts are kept that do not fit into memory."""
        if self.limits.experts == "resident" or not self.routing.layers:
            return None
        weights, banks = self.weights, []
        for i in self.routing.layers:
            name, ff = f"layers.{i}.experts", self.spec.layers[i].feed_forward
            first = "gate_up" if ff.gated else "up"
            parts = ((first, (1 + ff.gated) * ff.width, self.spec.hidden), ("down", self.spec.hidden, ff.width))
            size = max(self._end(f"{name}.{part}", part, rows, columns) for part, rows, columns in parts)
            banks.append((weights.tensor(name), weights.file_offset(name), size))
        slots = self.limits.slots_of_pool if self.limits.experts == "pool" else None
        return ExpertPool(self.spec, weights.path, banks, slots, self.limits.policy, self.limits.hints)

    def _end(self, name: str, part: str, rows: int, columns: int) -> int:
        """Where a matrix of a bank ends in each expert."""
        size = packed_blocks(part, rows) * FORMATS[self.format(name)].row_block_bytes(columns)
        return self.weights.offset(name) + size
