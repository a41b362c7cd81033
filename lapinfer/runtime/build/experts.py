"""The matrices of experts: the same ops wherever the experts are."""

from __future__ import annotations

import numpy as np

from lapinfer.kernels.operands import ACTIVATIONS, EXPERTS, GATED, ONE, PLAIN, TILE_GROUP_BYTES
from lapinfer.quant import GROUP
from lapinfer.quant.blocks import interleaved_rows
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.build.sizes import first_matrix
from lapinfer.runtime.build.trees import Target
from lapinfer.runtime.cost import Cost
from lapinfer.runtime.ops import Ops
from lapinfer.runtime.sizes import blocks_of_all_experts, blocks_of_an_expert, padded
from lapinfer.spec import FeedForwardSpec


def matrices_of_experts(build: Ops, index: int, addresses: np.ndarray, target: Target) -> None:
    """Both matrices of the active experts of a layer × their tokens. addresses: where each expert lies, int64 [E]."""
    ff, bank = build.feed_forwards[index], f"layers.{index}.experts"
    first, rows = first_matrix(ff)
    _experts(
        build, bank, addresses, first, index, GATED if ff.gated else PLAIN,
        bias=first_bias(build, f"{bank}.{first}", ff), activation=ACTIVATIONS.index(ff.activation),
        out=build.routing.hidden, out_kind=build.activation_kind(f"{bank}.down"), logical=(rows, build.hidden),
    )  # fmt: skip
    bias = build.vector(f"{bank}.down.bias", target.width) if ff.bias else None
    _experts(
        build, bank, addresses, "down", index, target.mode, bias=bias, out=target.out, scale=target.scale,
        logical=(target.width, ff.width),
    )  # fmt: skip


def bytes_of_an_expert(build: Ops, index: int, width: int) -> int:
    """Bytes that both matrices of an expert and their biases have; width: of what it gives."""
    ff, bank = build.feed_forwards[index], f"layers.{index}.experts"
    first, rows = first_matrix(ff)
    logical = {first: (rows, build.hidden), "down": (width, ff.width)}
    return sum(_matrix_bytes(build, f"{bank}.{part}", shape, ff) for part, shape in logical.items())


def _matrix_bytes(build: Ops, name: str, logical: tuple[int, int], ff: FeedForwardSpec) -> int:
    """Of one matrix of an expert, and its bias."""
    size = FORMATS[build.format(name)].row_block_bytes(logical[1])
    return build.weights.row_blocks(name) * size + (4 * logical[0] if ff.bias else 0)


def first_bias(build: Ops, name: str, ff: FeedForwardSpec) -> np.ndarray | None:
    """Bias of a first matrix, or of each expert's [E, …], in the order of the packed rows."""
    if not ff.bias:
        return None
    if not ff.gated:
        return build.vector(name + ".bias", ff.width)
    order = interleaved_rows(ff.width)
    return np.ascontiguousarray(np.where(order >= 0, build.weights.tensor(name + ".bias")[..., order], np.float32(0)))


def _experts(
    build: Ops, bank: str, addresses: np.ndarray, part: str, layer: int, mode: int, *,
    logical: tuple[int, int], out: np.ndarray, bias: np.ndarray | None, scale: float = 1.0, activation: int = 0,
    out_kind: int = 0,
) -> None:  # fmt: skip
    """One matrix of each expert of a bank × the tokens that are routed to it."""
    name, routing = f"{bank}.{part}", build.routing
    ff = build.feed_forwards[layer]
    blocks, groups = build.weights.row_blocks(name), padded(logical[1]) // GROUP
    tiled = mode in (GATED, PLAIN)
    least = {GATED: 4, PLAIN: 2}.get(mode, 1)
    # The second matrix passes over all experts of a token in one chunk, so fewer blocks make a chunk large enough.
    if tiled:
        unit = blocks_of_an_expert(blocks, ff.active, least)
    else:
        unit = blocks_of_all_experts(blocks, build.limits.threads)
    chunks = -(-blocks // unit)
    build.add(
        build.kernel("experts", name), f"experts.{part}", "experts", layer, EXPERTS if tiled else ONE, chunks,
        weights=addresses, offset=build.weights.offset(name), row_blocks=blocks, groups=groups,
        unit=unit, chunks=chunks, active=routing.active, tiles=routing.tiles, rows=routing.rows,
        row_weights=routing.row_weights, x=0 if tiled else routing.hidden,
        tile_bytes=0 if tiled else groups * TILE_GROUP_BYTES[build.activation_kind(name)], mode=mode, out=out,
        out_stride=0 if tiled else out.strides[0], bias=bias,
        bias_stride=0 if bias is None else bias.strides[0], scale=scale, activation=activation,
        out_groups=blocks // least if tiled else 0, out_kind=out_kind, scratch=build.scratch,
        scratch_stride=build.scratch.strides[0],
        packed=build.weights.tensor(bank), shape=f"{logical[0]} × {logical[1]}",
        cost=Cost(
            macs=ff.active * logical[0] * logical[1], routed=routing.position(layer),
            expert_bytes=_matrix_bytes(build, name, logical, ff),
        ),
    )  # fmt: skip
