"""What all reports ask of a packed model: its formats, the arithmetic that they need, and the work of attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.plan import Op
from lapinfer.spec import ModelSpec
from lapinfer.tensors import is_matrix, tensors

if TYPE_CHECKING:
    from lapinfer.model import Model


def formats_of(model: Model) -> dict[str, str]:
    """The format of each matrix."""
    return {name: str(model.weights.format(name)) for name in tensors(model.spec) if is_matrix(name)}


def main_format(spec: ModelSpec, formats: Mapping[str, str]) -> str:
    """The format that most weights are packed in."""
    weights: Counter[str] = Counter()
    for name, shape in tensors(spec).items():
        weights[formats.get(name, "f32")] += prod(shape)
    return weights.most_common(1)[0][0]


def arithmetic(format: str) -> Literal["int8", "float32"]:
    """What weights of a format are multiplied in; anything that is not packed, too, in float32."""
    return "int8" if format in FORMATS and FORMATS[format].grouped else "float32"


def attention_macs(op: Op, pos: np.ndarray) -> int:
    """Multiply-adds of an op of attention for tokens at these positions, which the meter does not count; else 0."""
    if (spec := op.notes.get("attention")) is None:
        return 0
    keys = pos + 1 if spec.window is None else np.minimum(pos + 1, spec.window)
    return spec.n_heads * (spec.k_dim + spec.v_dim) * int(keys.sum())
