"""The process of a node that has experts: an actor of Ray's around runtime/expert_node.py. It does not import Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapinfer.errors import DoesNotFitError, LapinferError
from lapinfer.machine import available_memory, resident_bytes
from lapinfer.packing.reader import PackedFile
from lapinfer.runtime.expert_node import ExpertNode
from lapinfer.runtime.expert_nodes import Request
from lapinfer.runtime.ops import Limits, Weights
from lapinfer.runtime.some_experts import Layout, Piece, SomeExperts
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors


@dataclass(frozen=True, slots=True)
class Charge:
    """What a node has to do. experts: its own, by routed layer. path: of the packed file, which the node maps if it
    has the same one (`content`); None where experts are sent in any case."""

    spec: ModelSpec
    limits: Limits
    experts: Sequence[np.ndarray]
    layout: Layout
    path: Path | None
    content: str | None
    together: int = 1

    @property
    def nbytes(self) -> int:
        """Of its experts."""
        sizes = [size for _, size in self.layout.banks.values()]
        return sum(len(own) * size for own, size in zip(self.experts, sizes, strict=True))


class ExpertActor:
    """It has all of its experts after `start`; until then, `take` gives them where it lacks the file."""

    def __init__(self, charge: Charge):
        self._charge, self._file = charge, _same_file(charge)
        self._available = available_memory()
        self._some = None if self._file is not None else SomeExperts(charge.layout)
        self._node: ExpertNode | None = None

    def lacks_file(self) -> bool:
        """Whether experts must be sent. DoesNotFitError where there is too little memory for them."""
        needed, free = self._charge.together * self._charge.nbytes, self._available
        if free is not None and needed > free:
            nodes = f"{self._charge.together} nodes" if self._charge.together > 1 else "a node"
            raise DoesNotFitError(f"experts of {nodes} need {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are available")
        return self._file is None and self._node is None

    def take(self, piece: Piece) -> None:
        assert self._some is not None
        self._some.take(piece)

    def start(self) -> None:
        """Compile or load kernels."""
        if self._node is None:
            charge, weights = self._charge, self._file or self._some
            assert weights is not None
            self._node = ExpertNode(charge.spec, weights, charge.limits, charge.experts)

    def answer(self, asked: tuple[int, np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, int, int] | None:
        """Fields of an Answer, for those of a Request; None, where this node has none of a step's experts."""
        if asked is None:
            return None
        assert self._node is not None
        answer = self._node.answer(Request(*asked))
        return answer.rows, answer.ns, answer.touched

    def usage(self) -> dict[str, Any]:
        """This process and the bytes that it takes, whether its experts were sent, and touched bytes since it began."""
        touched = 0 if self._node is None else int(self._node.usage.bytes.sum())
        return {
            "pid": os.getpid(), "resident": resident_bytes(), "sent": self._some is not None, "touched": touched,
        }  # fmt: skip


def _same_file(charge: Charge) -> Weights | None:
    """The packed file, mapped, if this node has the one that is meant: of it, only the node's experts are read."""
    if charge.path is None or charge.content is None:
        return None
    with suppress(LapinferError, OSError):
        file = PackedFile(charge.path, tensors(charge.spec, coarse=True).values())
        if file.content == charge.content:
            return file
    return None
