"""What all reports ask of a packed model: its formats, and the arithmetic that they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal

from lapinfer.quant.formats import FORMATS
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
