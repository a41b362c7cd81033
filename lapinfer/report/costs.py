"""What a packed model costs as its spec and formats say, without running it: what every report asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.kv import KVKinds
from lapinfer.runtime.predict import expected_best_blocks, packed_bytes, predict_bytes
from lapinfer.spec import ModelSpec
from lapinfer.tensors import active_parameters, feed_forward_tensors, parameters, tensors

if TYPE_CHECKING:
    from lapinfer.model import Model

Arithmetic = Literal["int8", "float32"]


@dataclass(frozen=True)
class Costs:
    """formats: of each matrix; kv: of the cache, or of each layer's."""

    spec: ModelSpec
    formats: Mapping[str, str]
    kv: KVKinds = "f16"

    @classmethod
    def of(cls, model: Model) -> Costs:
        """As the model is now: a step may have widened a layer's cache."""
        return cls(model.spec, dict(model.weights.formats), model.kv)

    @cached_property
    def parameters(self) -> int:
        return parameters(self.spec)

    @cached_property
    def active_parameters(self) -> int:
        """Those that a token uses."""
        return active_parameters(self.spec)

    @cached_property
    def stored(self) -> dict[str, int]:
        """Bytes of all weights by format."""
        return packed_bytes(self.spec, self.formats)

    @property
    def weight_bytes(self) -> int:
        return sum(self.stored.values())

    @cached_property
    def main_format(self) -> str:
        """The format that most weights are packed in."""
        weights: Counter[str] = Counter()
        for name, tensor in tensors(self.spec).items():
            weights[self.formats.get(name, "f32")] += tensor.size
        return weights.most_common(1)[0][0]

    @property
    def arithmetic(self) -> Arithmetic:
        return arithmetic(self.main_format)

    def expert(self, layer: int) -> tuple[int, int]:
        """Bytes and multiply-adds of one expert or leaf of a routed layer."""
        ff, hidden = self.spec.layers[layer].feed_forward, self.spec.hidden
        matrices = [tensor for tensor in feed_forward_tensors(layer, ff, hidden, hidden) if tensor.is_matrix]
        nbytes = sum(tensor.nbytes(self.formats[tensor.name]) // ff.experts for tensor in matrices)
        return nbytes, sum(tensor.size // ff.experts for tensor in matrices)

    def touched(
        self, pos: Sequence[int] | np.ndarray, wanted: int = 1, slot: Sequence[int] | np.ndarray | None = None,
        read_by: Model | None = None, best_blocks: int | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """Predicted bytes by part of a step, of which `wanted` tokens give logits.

        slot: the sequence of each token, None for one of all. read_by: the model whose last step is meant, for as many
        experts and nodes as that has read; else those that chance would choose. best_blocks: row blocks of the head
        that are read for the best logits; None: all logits.
        """
        distinct = (None, None) if read_by is None else (read_by.distinct_experts, read_by.distinct_nodes)
        slot = np.zeros(len(pos), np.int64) if slot is None else slot
        return predict_bytes(
            self.spec, dict(self.formats), self.kv, slot, pos, wanted, *distinct, best_blocks=best_blocks
        )

    def decoded(self, pos: int) -> int:
        """Bytes that a decoded token at `pos` is expected to touch: of a head, the rows that samplers look at."""
        return sum(self.touched([pos], best_blocks=expected_best_blocks(self.spec, self.formats)).values())


def arithmetic(format: str) -> Arithmetic:
    """What weights of a format are multiplied in; anything that is not packed, too, in float32."""
    return "int8" if format in FORMATS and FORMATS[format].grouped else "float32"
