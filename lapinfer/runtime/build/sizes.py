"""Sizes of the buffers that the layers of a model share, from its spec alone."""

from __future__ import annotations

from lapinfer.kernels.operands import KEY_BLOCK, PARTIAL_EXTRA, TILE
from lapinfer.quant import GROUP, ROWS
from lapinfer.runtime.kv import lanes
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.sizes import padded
from lapinfer.spec import (
    AttentionSpec,
    ConvolutionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    RecurrenceSpec,
)

ATTENTION_ROWS = 4
"""Query rows of a register tile in kernels/attention.py."""


def partials(limits: Limits) -> int:
    """Attention partials that their buffer holds."""
    blocks = padded(limits.ctx, KEY_BLOCK) // KEY_BLOCK
    return max(padded(limits.step, TILE), 2 * TILE, TILE * blocks)


def attention_scratch(a: AttentionSpec) -> int:
    """Floats of scratch memory that one thread needs for attention."""
    attention = (TILE * a.n_heads // a.n_kv_heads + 2 * ATTENTION_ROWS) * a.k_dim
    attention += ATTENTION_ROWS * (3 * KEY_BLOCK + lanes(a.v_dim) + 2)
    merge = padded(a.n_heads * a.v_dim) + ROWS
    latent = padded(a.k_dim) + padded(a.q_rows)
    return max(attention, merge, latent)


def context_bytes(spec: ModelSpec, limits: Limits) -> int:
    """Bytes of the buffers, other than the KV cache, that grow with the context: rotary tables and partials."""
    ropes = sum(4 * limits.ctx * rope.dim for rope in {a.rope for a in spec.attentions if a.rope is not None})
    growths = 4 * limits.ctx * len({a.growth for a in spec.attentions if a.growth is not None})
    heads, width = partial_row(spec)
    return ropes + growths + 4 * partials(limits) * heads * width


def partial_row(spec: ModelSpec) -> tuple[int, int]:
    """Heads of an attention partial, and floats of each, in the buffer that all layers share."""
    heads = max((a.n_heads for a in spec.attentions), default=0)
    return heads, max((lanes(a.v_dim) for a in spec.attentions), default=0) + PARTIAL_EXTRA


def gates_width(hidden: int) -> int:
    """Floats of a token's row (B, C, x), with what is read after x where the width is not a multiple of a group."""
    return padded(2 * hidden + padded(hidden))


def mixer_width(layer: LayerSpec, hidden: int) -> int:
    """Floats of a token's row that a layer's first matrix gives, with what is read, or added, after them."""
    match layer.mixer:
        case AttentionSpec() as attention:
            return padded(attention.qkv_rows + GROUP * attention.gated)
        case ConvolutionSpec():
            return gates_width(hidden)
        case RecurrenceSpec() as recurrence:
            return padded(recurrence.channels + recurrence.values + 2 * recurrence.heads + ROWS)


def first_matrix(ff: FeedForwardSpec) -> tuple[str, int]:
    """Name and rows of the first matrix of a feed-forward or of each expert: gate and up are one."""
    return ("gate_up", 2 * ff.width) if ff.gated else ("up", ff.width)
