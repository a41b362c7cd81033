"""What layers keep of earlier tokens, for a number of slots (sequences).

Keys and values; inputs of convolutions; states of recurrences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lapinfer.kernels.operands import BF16, KEY_BLOCK, KEY_LANES, KV_GROUP, KV_KINDS, STATE_COLUMNS
from lapinfer.options import KVName, KVOption
from lapinfer.runtime.buffers import zeros
from lapinfer.runtime.sizes import padded
from lapinfer.spec import STATES, AttentionSpec, ConvolutionSpec, LayerSpec, ModelSpec, RecurrenceSpec

KVKinds = KVName | Sequence[KVName]
"""The format of all layers' caches, or that of each."""

DTYPES = {"f32": np.float32, "f16": np.float16, "q8": np.int8}
LANES = 16


def kv_format(asked: KVOption, quant: str) -> KVName:
    """The format of the cache of a model whose weights were packed as `quant`."""
    if asked != "auto":
        return asked
    return "f32" if quant == "f32" else "f16"


def of_layer(kinds: KVKinds, layer: int) -> KVName:
    """The format of one layer's cache."""
    return kinds if isinstance(kinds, str) else kinds[layer]


def lanes(width: int) -> int:
    """The width of a head's values as stored: whole vectors of LANES floats."""
    return -(-width // LANES) * LANES


def groups(width: int) -> int:
    """Groups of a head's numbers that share a scale of a q8 cache."""
    return -(-width // KV_GROUP)


def capacity(attention: AttentionSpec, ctx: int, chunk: int) -> int:
    """Keys that a slot of a layer can hold, a multiple of KEY_BLOCK.

    A window keeps a ring; a chunk of a prompt needs chunk − 1 more positions, or it would overwrite keys that it still
    reads.
    """
    needed = ctx if attention.window is None else min(ctx, attention.window + chunk - 1)
    return -(-needed // KEY_BLOCK) * KEY_BLOCK


def bytes_per_key(attention: AttentionSpec, kind: KVName) -> int:
    """Bytes of one position's keys and values, of all heads of a layer, with their scales."""
    numbers = attention.k_dim + lanes(attention.v_dim)
    scales = groups(attention.k_dim) + groups(attention.v_dim) if kind == "q8" else 0
    return attention.n_kv_heads * (numbers * np.dtype(DTYPES[kind]).itemsize + scales * np.dtype(BF16).itemsize)


def bytes_per_position(layer: LayerSpec, hidden: int, kind: KVName) -> int:
    """Bytes of what a layer keeps of one position: keys and values, or a convolution's input."""
    match layer.mixer:
        case AttentionSpec() as attention:
            return bytes_per_key(attention, kind)
        case ConvolutionSpec():
            return 4 * hidden
        case RecurrenceSpec() as recurrence:
            return 4 * recurrence.channels


def bytes_per_slot(layer: LayerSpec) -> int:
    """Bytes of what a layer reads of a sequence whatever its length: the states of a recurrence."""
    return 0 if layer.recurrence is None else state_bytes(layer.recurrence)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values (layout: kernels/operands.py). Untouched pages take no memory."""

    kind: KVName
    capacity: int
    keys: np.ndarray
    values: np.ndarray
    key_scales: np.ndarray
    value_scales: np.ndarray

    @property
    def code(self) -> int:
        return KV_KINDS.index(self.kind)


def layer_cache(attention: AttentionSpec, kind: KVName, slots: int, ctx: int, chunk: int) -> LayerCache:
    """A layer's cache for `slots` sequences of `ctx` positions and steps of at most `chunk` tokens."""
    keys = capacity(attention, ctx, chunk)
    heads = (slots, attention.n_kv_heads)

    def scales(width: int) -> np.ndarray:
        return zeros((*heads, groups(width), keys) if kind == "q8" else (1,), BF16)

    return LayerCache(
        kind,
        keys,
        zeros((*heads, keys // KEY_LANES, attention.k_dim, KEY_LANES), DTYPES[kind]),
        zeros((*heads, keys, lanes(attention.v_dim)), DTYPES[kind]),
        scales(attention.k_dim),
        scales(attention.v_dim),
    )


def convolution_state(convolution: ConvolutionSpec, hidden: int, slots: int) -> np.ndarray:
    """One layer's gated inputs [slot, kernel, padded D] float32, a ring: position p is at p % kernel.

    A chunk of a prompt needs no more positions than one token, because a column's positions are computed in order
    (kernels/convolution.py).
    """
    return inputs_of_convolution(hidden, convolution.kernel, slots)


def inputs_of_convolution(width: int, kernel: int, slots: int) -> np.ndarray:
    """A ring [slot, kernel, padded width] float32: position p is at p % kernel."""
    return zeros((slots, kernel, padded(width)))


def state_blocks(recurrence: RecurrenceSpec) -> int:
    """Blocks of columns that a head's state is kept in."""
    return padded(recurrence.v_dim, STATE_COLUMNS) // STATE_COLUMNS


def state_shape(recurrence: RecurrenceSpec) -> tuple[int, ...]:
    """Of the states of all heads after one position: [H, blocks, k_dim, STATE_COLUMNS]."""
    return recurrence.heads, state_blocks(recurrence), recurrence.k_dim, STATE_COLUMNS


def state_bytes(recurrence: RecurrenceSpec) -> int:
    """Bytes of the states of all heads after one position."""
    return 4 * prod(state_shape(recurrence))


def states(recurrence: RecurrenceSpec, slots: int) -> np.ndarray:
    """One layer's states [slot, STATES, H, blocks, k_dim, STATE_COLUMNS] float32, a ring: after p at p % STATES."""
    return zeros((slots, STATES, *state_shape(recurrence)))


def cache_bytes(spec: ModelSpec, kinds: KVKinds, slots: int, ctx: int, chunk: int) -> int:
    """Bytes that a full cache takes."""
    keys = sum(
        capacity(layer.mixer, ctx, chunk) * bytes_per_key(layer.mixer, of_layer(kinds, i))
        for i, layer in enumerate(spec.layers)
        if isinstance(layer.mixer, AttentionSpec)
    )
    kernels = sum(layer.convolution.kernel for layer in spec.layers if layer.convolution is not None)
    recurrences = [layer.recurrence for layer in spec.layers if layer.recurrence is not None]
    inputs = sum(4 * padded(r.channels) * r.kernel + STATES * state_bytes(r) for r in recurrences)
    return slots * (keys + 4 * padded(spec.hidden) * kernels + inputs)
