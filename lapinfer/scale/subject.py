"""A model to be simulated: its sizes, how long its steps take on one machine, and which experts its tokens choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import PAIR
from lapinfer.report.fit import PROCESS_BYTES
from lapinfer.report.measured import Kind
from lapinfer.scale.tape import Tape
from lapinfer.scale.times import Times

ROUTE_BYTES = np.dtype(np.int64).itemsize * len(PAIR)
"""Of a pair of a token and an expert in a message: which they are."""


@dataclass(frozen=True, slots=True)
class Subject:
    """weight_bytes: of all weights; cache_bytes: of a sequence's cache, full; sent: bytes of a token's activations, as
    experts read them; returned: of a row that an expert gives back. active: parameters that a token uses. source: how
    `times` came about. separable: whether the engine lets experts be apart: it refuses leaves of a few neurons."""

    name: str
    kind: Kind
    parameters: int
    active: int
    weight_bytes: int
    cache_bytes: int
    sent: int
    returned: int
    times: Times
    tape: Tape
    source: str
    separable: bool = True

    @property
    def layers(self) -> int:
        """Those that are routed."""
        return len(self.tape.experts)

    @property
    def routed_bytes(self) -> int:
        """Of all experts that may be apart."""
        return sum(self.tape.experts) * self.times.expert_bytes

    def replica_bytes(self, sequences: int) -> int:
        """Memory of a node that has the whole model, and the caches of so many sequences."""
        return self.weight_bytes + sequences * self.cache_bytes + PROCESS_BYTES

    def apart_bytes(self, sequences: int, holders: int, *, home: bool, holds: bool) -> int:
        """Memory of a node where experts are apart on so many: of a home all but these, and sequences' caches."""
        most = sum(-(-experts // holders) for experts in self.tape.experts) * self.times.expert_bytes
        own = self.weight_bytes - self.routed_bytes + sequences * self.cache_bytes if home else 0
        return own + most * holds + PROCESS_BYTES
