"""What layers remember of earlier tokens, for a number of slots (sequences): the KV cache, inputs of convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lapinfer.kernels.operands import KEY_BLOCK, KEY_LANES, KV_KINDS
from lapinfer.runtime.sizes import padded
from lapinfer.spec import AttentionSpec, ConvolutionSpec, LayerSpec, ModelSpec

KVName = Literal["f32", "f16", "q8"]
DTYPES = {"f32": np.float32, "f16": np.float16, "q8": np.int8}


def lanes(width: int) -> int:
    """Values of a head are stored in whole vectors of 16."""
    return -(-width // 16) * 16


def capacity(attention: AttentionSpec, ctx: int, chunk: int) -> int:
    """Keys that a slot of a layer can hold, a multiple of KEY_BLOCK.

    A window keeps a ring; a chunk of a prompt needs chunk − 1 places more, or it would overwrite keys it still reads.
    """
    needed = ctx if attention.window is None else min(ctx, attention.window + chunk - 1)
    return -(-needed // KEY_BLOCK) * KEY_BLOCK


def bytes_per_key(attention: AttentionSpec, kind: KVName) -> int:
    """Bytes of one position's key and value, all heads of a layer, scales included."""
    numbers = attention.k_dim + lanes(attention.v_dim)
    scales = 8 if kind == "q8" else 0
    return attention.n_kv_heads * (numbers * np.dtype(DTYPES[kind]).itemsize + scales)


def bytes_per_position(layer: LayerSpec, hidden: int, kind: KVName) -> int:
    """Bytes of what a layer keeps of one position: a key and a value, or a convolution's gated input [D]."""
    return 4 * hidden if isinstance(layer.mixer, ConvolutionSpec) else bytes_per_key(layer.mixer, kind)


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

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.key_scales.nbytes + self.value_scales.nbytes


def layer_cache(attention: AttentionSpec, kind: KVName, slots: int, ctx: int, chunk: int) -> LayerCache:
    places = capacity(attention, ctx, chunk)
    heads = (slots, attention.n_kv_heads)
    scales = (*heads, places) if kind == "q8" else (1,)
    return LayerCache(
        kind,
        places,
        np.zeros((*heads, places // KEY_LANES, attention.k_dim, KEY_LANES), DTYPES[kind]),
        np.zeros((*heads, places, lanes(attention.v_dim)), DTYPES[kind]),
        np.zeros(scales, np.float32),
        np.zeros(scales, np.float32),
    )


def convolution_state(convolution: ConvolutionSpec, hidden: int, slots: int) -> np.ndarray:
    """One layer's gated inputs [slot, kernel, padded D] float32, a ring: position p stands at p % kernel.

    It needs no places more for the chunks of a prompt, since a column's positions are computed in their order
    (kernels/convolution.py).
    """
    return np.zeros((slots, convolution.kernel, padded(hidden)), np.float32)


def cache_bytes(spec: ModelSpec, kind: KVName, slots: int, ctx: int, chunk: int) -> int:
    """Memory that a full cache takes."""
    keys = sum(capacity(attention, ctx, chunk) * bytes_per_key(attention, kind) for attention in spec.attentions)
    kernels = sum(layer.convolution.kernel for layer in spec.layers if layer.convolution is not None)
    return slots * (keys + 4 * padded(spec.hidden) * kernels)
