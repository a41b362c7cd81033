"""Packed weights of any shape without a checkpoint, for measuring speed where quality does not matter.

A matrix is a few random rows, packed once for each format and width, and repeated; every copy has memory of its own, as
if it were all different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lapinfer.errors import DoesNotFitError
from lapinfer.machine import available_memory
from lapinfer.model import Model
from lapinfer.packing.entries import PackedEntry, pack_matrix
from lapinfer.packing.memory import MemoryWeights
from lapinfer.quant import BAND, ROWS
from lapinfer.quant.blocks import pack
from lapinfer.quant.choice import AUTO, MODELS, ROUTERS, head_format
from lapinfer.quant.rows import pack_rows
from lapinfer.report.shapes import shape_spec
from lapinfer.runtime.build.sizes import context_bytes
from lapinfer.runtime.kv import cache_bytes
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import packed_bytes
from lapinfer.spec import ModelSpec
from lapinfer.tensors import Tensor, tensors

ROWS_PACKED = 64
"""Of a matrix that is packed row by row."""


def random_weights(
    tensors: Iterable[Tensor], formats: Mapping[str, str], seed: int = 0,
    given: Mapping[str, np.ndarray] | None = None, fill: Callable[[str], float] = lambda name: 1.0,
) -> MemoryWeights:  # fmt: skip
    """Weights of a model or of a layer. given: float32 of what must not be random; fill: of vectors."""
    rng, given = np.random.default_rng(seed), given or {}
    few: dict[tuple[bool, str, int], np.ndarray] = {}

    def some_rows(by_row: bool, format: str, columns: int) -> np.ndarray:
        key = (by_row, format, columns)
        if key not in few:
            count = ROWS_PACKED if by_row else BAND * ROWS
            values = rng.standard_normal((count, columns), np.float32) / np.float32(columns**0.5)
            few[key] = (pack_rows if by_row else pack)(format, values)
        return few[key]

    def packed(entry: PackedEntry) -> np.ndarray:
        if entry.format is None:
            values = given.get(entry.name)
            return np.full(entry.shape, fill(entry.name), np.float32) if values is None else values
        if entry.name in given:
            return pack_matrix(entry.tensor, entry.format, given[entry.name])
        stored = entry.stored[1]
        rows, count = some_rows(entry.tensor.packing == "rows", entry.format, entry.shape[-1]), stored[-2]
        return np.broadcast_to(np.tile(rows, (-(-count // len(rows)), 1))[:count], stored)

    return MemoryWeights(tensors, formats, packed)


def shape_formats(spec: ModelSpec, quant: str) -> dict[str, str]:
    """As a large model is packed: routers in float32, a finer head."""
    quant = MODELS["large"] if quant == AUTO else quant
    head = head_format(quant, set(), "large")
    matrices = [tensor for tensor in tensors(spec).values() if tensor.is_matrix]
    return {t.name: ROUTERS[0] if t.role == "router" else head if t.layer < 0 else quant for t in matrices}


def shape_model(size: str, kind: str, quant: str, limits: Limits) -> Model:
    """In memory, without a file. DoesNotFitError when there is too little memory for it."""
    spec = shape_spec(size, kind)
    formats = shape_formats(spec, quant)
    kept = cache_bytes(spec, limits.kv, limits.slots, limits.ctx, limits.step)
    needed = sum(packed_bytes(spec, formats).values()) + kept + context_bytes(spec, limits)
    free = available_memory()
    if free is not None and needed > free:
        raise DoesNotFitError(
            f"{size}-{kind}: needs {needed / 1e9:.2f} GB ({kept / 1e9:.2f} of them for the KV cache of {limits.slots} "
            f"x {limits.ctx} positions), {free / 1e9:.2f} GB are free; try --quant q4, fewer sequences or shorter tests"
        )
    weights = random_weights(tensors(spec).values(), formats)
    return Model(spec, weights, limits, name=f"{size}-{kind}")
