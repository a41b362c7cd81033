"""From a spec and packed weights to a plan: the one place that says which ops a model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q16,
    ACTIVATION_KINDS,
    ACTIVATIONS,
    ADD,
    ANY_WANT,
    F32_TILE_GROUP,
    GATED,
    HEAD,
    ITEM,
    ITEMS,
    KEY_BLOCK,
    LAYER,
    NO_WINDOW,
    NONE,
    ONE,
    PARTIAL_EXTRA,
    PLAIN,
    RMS,
    STEP,
    STORE,
    TILE,
    TILES,
    TOKENS,
    WANT,
    WANT_TILES,
)
from lapinfer.quant import BAND, FORMATS, GROUP, ROWS
from lapinfer.quant.blocks import interleaved_rows
from lapinfer.runtime.kv import KVName, LayerCache, lanes, layer_cache
from lapinfer.runtime.plan import Op
from lapinfer.spec import AttentionSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec

ATTENTION_ROWS = 4
"""Query rows of a register tile in kernels/attention.py."""


MANY_CHUNKS, FEW_CHUNKS = 24, 4
MAX_CHUNK_BYTES = 400_000


class Weights(Protocol):
    """Packed weights by our tensor names."""

    def tensor(self, name: str) -> np.ndarray: ...

    def format(self, name: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What buffers are allocated for: positions a slot, slots, tokens a step, threads, and the KV cache's numbers.

    `activations`: what q8 and q4 weights are multiplied with, int8 (q8) or twice as exact (q16).
    """

    ctx: int
    slots: int = 1
    step: int = 512
    threads: int = 1
    kv: KVName = "f16"
    activations: Literal["q8", "q16"] = "q8"


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


def padded(width: int, multiple: int = GROUP) -> int:
    return -(-width // multiple) * multiple


def blocks_in_a_chunk(blocks: int, row_block_bytes: int, least: int) -> int:
    """Row blocks that one chunk of a matrix takes: by shape alone, never by the number of threads.

    A band, which is read as one; two where there are enough, since long runs read memory faster; parts of one where
    there are so few that threads would have nothing to do. `least`: blocks that belong together.
    """
    if blocks >= 2 * BAND * MANY_CHUNKS and 2 * BAND * row_block_bytes <= MAX_CHUNK_BYTES:
        return 2 * BAND
    return BAND if blocks >= BAND * FEW_CHUNKS else least


def rope_table(rope: RopeSpec, ctx: int) -> np.ndarray:
    """[ctx, dim] float32: cos of every pair's angle, then sin; angles in float32 as the reference has them."""
    long = rope.long_context and ctx > rope.long_context
    frequencies = np.array(rope.long_inv_freq if long else rope.inv_freq, np.float32)
    scale = np.float32(rope.long_scale if long else rope.scale)
    angles = np.arange(ctx, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.cos(angles) * scale, np.sin(angles) * scale], axis=1)


def partials(limits: Limits) -> int:
    """How many attention partials the buffer for them holds."""
    blocks = padded(limits.ctx, KEY_BLOCK) // KEY_BLOCK
    return max(padded(limits.step, TILE), 2 * TILE, TILE * blocks)


def context_bytes(spec: ModelSpec, limits: Limits) -> int:
    """Bytes of the buffers, other than the KV cache, that grow with the context: rotary tables and partials."""
    attentions = [layer.attention for layer in spec.layers]
    ropes = sum(4 * limits.ctx * rope.dim for rope in {a.rope for a in attentions if a.rope is not None})
    row = max(a.n_heads for a in attentions) * (max(lanes(a.v_dim) for a in attentions) + PARTIAL_EXTRA)
    return ropes + 4 * partials(limits) * row


class Builder:
    """Collects ops; buffers are shared by all layers."""

    def __init__(self, spec: ModelSpec, weights: Weights, limits: Limits):
        self.spec, self.weights, self.limits = spec, weights, limits
        self.ops: list[Op] = []
        T, D = padded(limits.step, TILE), padded(spec.hidden)
        self.x = np.zeros((T, D), np.float32)
        self.y = np.zeros((T, D), np.float32)
        attentions = [layer.attention for layer in spec.layers]
        self.qkv = np.zeros((T, max(padded(a.qkv_rows) for a in attentions)), np.float32)
        inputs = [D, *(a.n_heads * a.v_dim for a in attentions), *(layer.feed_forward.width for layer in spec.layers)]
        self.tiles = np.zeros((T // TILE, padded(max(inputs), 2 * GROUP) // GROUP, F32_TILE_GROUP), np.uint8)
        self.hidden_tiles = np.zeros_like(self.tiles)
        self.scratch = np.zeros((limits.threads, self._scratch_floats()), np.float32)
        heads, width = max(a.n_heads for a in attentions), max(lanes(a.v_dim) for a in attentions)
        count = partials(limits)
        self.partial = np.zeros((count, heads, width + PARTIAL_EXTRA), np.float32)
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
        attention = max(
            (TILE * a.n_heads // a.n_kv_heads + 2 * ATTENTION_ROWS) * a.k_dim
            + ATTENTION_ROWS * (KEY_BLOCK + lanes(a.v_dim) + 2)
            for a in (layer.attention for layer in self.spec.layers)
        )
        merge = max(padded(layer.attention.n_heads * layer.attention.v_dim) + ROWS for layer in self.spec.layers)
        return padded(max(matmul, attention, merge), 32)

    def vector(self, name: str, width: int, offset: float = 0.0) -> np.ndarray:
        """A float32 vector, padded with zeros to whole groups."""
        values = np.zeros(padded(width), np.float32)
        stored = self.weights.tensor(name)
        values[: len(stored)] = stored + np.float32(offset)
        return values

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

    def norm(self, name: str, norm: NormSpec | None, layer: int, part: str, kind: int, wanted: bool = False) -> None:
        """Norm of the residual stream into `tiles`; only the wanted tokens before the head."""
        D = self.spec.hidden
        self.add(
            "norm", name.rsplit(".", 1)[-1], part, layer, WANT_TILES if wanted else TILES, 1,
            x=self.x, x_stride=self.x.strides[0], rows=self.step.want if wanted else 0,
            tokens=WANT if wanted else TOKENS, out=self.tiles, groups=padded(D) // GROUP, out_kind=kind,
            **self._norm_operands(name, norm, D),
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
        block_max: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        weights, fmt = self.weights.tensor(name), self.format(name)
        blocks, row_block_bytes = weights.shape
        groups = padded(logical[1]) // GROUP
        least = {GATED: 4, PLAIN: 2}.get(mode, 1)
        unit = blocks_in_a_chunk(blocks, row_block_bytes, least)
        tiled = mode in (GATED, PLAIN)
        target = self.hidden_tiles if tiled else out
        assert target is not None
        kernel = f"matmul_{fmt}_q16" if self.wants(name) == ACT_Q16 else f"matmul_{fmt}"
        count, times = ANY_WANT if wanted else ONE, -(-blocks // unit)
        self.add(
            kernel, label or name.rsplit(".", 1)[-1], part, layer, count, times,
            weights=weights, row_blocks=blocks, groups=groups, unit=unit, x=x,
            tokens=WANT if wanted else TOKENS, mode=mode, out=target, out_stride=0 if tiled else target.strides[0],
            bias=0 if bias is None else bias, scale=scale, softcap=softcap, activation=activation,
            out_groups=blocks // least if tiled else 0, out_kind=out_kind,
            block_max=0 if block_max is None else block_max, scratch=self.scratch,
            scratch_stride=self.scratch.strides[0],
            weight_bytes=weights.nbytes + (0 if bias is None else 4 * logical[0]), macs=logical[0] * logical[1],
            notes={"format": fmt, "shape": logical},
        )  # fmt: skip

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

    def _sublayer_end(self, p: str, name: str, post: NormSpec | None, layer: int, part: str, x, bias, logical) -> None:
        """The matrix that returns to the residual stream, and the norm behind it where there is one."""
        scale = self.spec.layers[layer].residual_scale
        if post is None:
            self.matmul(p + name, layer, part, x, ADD, out=self.x, bias=bias, scale=scale, logical=logical)
        else:
            self.matmul(p + name, layer, part, x, STORE, out=self.y, bias=bias, logical=logical)
            self.add_norm(f"{p}{'attn' if part == 'attention' else 'ff'}_post_norm", post, layer, part, scale)

    def attention(self, layer: int, spec: AttentionSpec, post: NormSpec | None) -> None:
        p = f"layers.{layer}."
        D, step, H, K = self.spec.hidden, self.step, spec.n_heads, spec.n_kv_heads
        cache = layer_cache(spec, self.limits.kv, self.limits.slots, self.limits.ctx, self.limits.step)
        self.caches.append(cache)
        bias = self.vector(p + "qkv.bias", spec.qkv_rows) if spec.qkv_bias else None
        self.matmul(
            p + "qkv", layer, "attention", self.tiles, STORE, out=self.qkv, bias=bias, logical=(spec.qkv_rows, D)
        )
        table: np.ndarray | int = 0
        if spec.rope is not None:
            table = self.ropes.setdefault(spec.rope, rope_table(spec.rope, self.limits.ctx))
        heads = (H, K) if spec.qk_norm_full else (1, 1)
        norms = {"q_norm": 0, "k_norm": 0} if spec.qk_norm is None else {
            f"{which}_norm": self.vector(f"{p}{which}_norm.weight", n * spec.k_dim, spec.qk_norm.offset)
            for which, n in zip("qk", heads, strict=True)
        }  # fmt: skip
        shared = {
            "qkv": self.qkv, "qkv_stride": self.qkv.strides[0], "heads": H, "kv_heads": K, "k_dim": spec.k_dim,
            "v_dim": spec.v_dim, "pos": step.pos, "k_cache": cache.keys, "v_cache": cache.values,
            "k_scale": cache.key_scales, "v_scale": cache.value_scales, "capacity": cache.capacity,
        }  # fmt: skip
        self.add(
            "rope_store", "rope, store", "attention", layer, TILES, 1, **shared, **norms,
            rope=table, rope_dim=spec.rope.dim if spec.rope else 0,
            interleaved=int(spec.rope is not None and spec.rope.interleaved), slot=step.slot, kv=cache.code,
            norm_full=int(spec.qk_norm_full), eps=spec.qk_norm.eps if spec.qk_norm else 0.0,
            weight_bytes=0 if spec.qk_norm is None else 4 * spec.k_dim * sum(heads),
        )  # fmt: skip
        window = NO_WINDOW if spec.window is None else spec.window
        partial = {"partial": self.partial_of(spec), "part_table": step.part}
        scratch = {"scratch": self.scratch, "scratch_stride": self.scratch.strides[0]}
        self.add(
            f"attention_{cache.kind}", "attention", "kv", layer, ITEMS, K, **shared, **partial, **scratch,
            items=step.items, window=window, scale=spec.scale, softcap=spec.softcap or 0.0, notes={"attention": spec},
        )  # fmt: skip
        width = H * spec.v_dim
        self.add(
            "merge", "merge", "kv", layer, TILES, 1, **partial, **scratch, heads=H, v_dim=spec.v_dim, pos=step.pos,
            window=window, out=self.tiles, groups=padded(width) // GROUP, out_kind=self.wants(p + "o"),
        )  # fmt: skip
        bias = self.vector(p + "o.bias", D) if spec.o_bias else None
        self._sublayer_end(p, "o", post, layer, "attention", self.tiles, bias, (D, width))

    def partial_of(self, spec: AttentionSpec) -> np.ndarray:
        """The partials' buffer at a layer's own sizes."""
        shape = (self.step.partials, spec.n_heads, lanes(spec.v_dim) + PARTIAL_EXTRA)
        return self.partial.reshape(-1)[: int(np.prod(shape))].reshape(shape)

    def feed_forward(self, index: int, layer: LayerSpec) -> None:
        p, ff, D = f"layers.{index}.", layer.feed_forward, self.spec.hidden
        name, rows = ("gate_up", 2 * ff.width) if ff.gated else ("up", ff.width)
        bias = None
        if ff.bias:
            stored = self.weights.tensor(f"{p}{name}.bias")
            if ff.gated:
                order = interleaved_rows(ff.width)
                bias = np.where(order >= 0, stored[order], np.float32(0))
            else:
                bias = self.vector(f"{p}{name}.bias", ff.width)
        kind = self.wants(p + "down")
        self.matmul(
            p + name, index, "feed-forward", self.tiles, GATED if ff.gated else PLAIN, bias=bias,
            activation=ACTIVATIONS.index(ff.activation), out_kind=kind, logical=(rows, D),
        )  # fmt: skip
        bias = self.vector(p + "down.bias", D) if ff.bias else None
        self._sublayer_end(p, "down", layer.ff_post_norm, index, "feed-forward", self.hidden_tiles, bias, (D, ff.width))

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
            p = f"layers.{i}."
            self.norm(p + "attn_norm", layer.attn_norm, i, "attention", self.wants(p + "qkv"))
            self.attention(i, layer.attention, layer.attn_post_norm)
            up = p + ("gate_up" if layer.feed_forward.gated else "up")
            self.norm(p + "ff_norm", layer.ff_norm, i, "feed-forward", self.wants(up))
            self.feed_forward(i, layer)
        self.head()
        return Built(self.ops, self.step, self.caches)
