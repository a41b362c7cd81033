"""A plan: what a step does, as a list of ops over buffers that were allocated once.

An op names a kernel and its operands; `Plan` encodes the list as rows of int64 (kernel address, operand addresses,
sizes) which the team runs without Python. Arrays are checked here, before their addresses leave Python, and are kept
alive by the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import COUNT, FIRST, KERNEL, OPERANDS, ROW, TIMES, KernelId
from lapinfer.runtime.cost import FREE, Cost

Operand = np.ndarray | int | float


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel with its operands, run in (step[count] · times) chunks.

    `part` is what its bytes are accounted as (attention, feed-forward, head, …), `label` what a person reads,
    `layer` the layer or −1, `shape` for a person, too. `packed`: the bank of experts that it reads, where its operands
    hold only their addresses. `after`: what Python does when it is done, before the next op begins.
    """

    kernel: KernelId
    label: str
    part: str
    layer: int
    count: int
    times: int
    operands: dict[str, Operand]
    cost: Cost = FREE
    shape: str = ""
    packed: np.ndarray | None = None
    after: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.label if self.layer < 0 else f"{self.layer}.{self.label}"

    @property
    def weights(self) -> np.ndarray | None:
        """The packed weights that it reads: a matrix, or a bank of experts."""
        operands = self.operands
        weights = operands.get("weights", operands.get("leaves")) if self.packed is None else self.packed
        return weights if isinstance(weights, np.ndarray) else None


def encode(op: Op, address: int) -> np.ndarray:
    """The op's row. ValueError for operands that its kernel does not have, or that are not what was declared."""
    fields = OPERANDS[op.kernel.kind].fields
    if unknown := set(op.operands) ^ set(fields):
        raise ValueError(f"op {op.name}: operands {sorted(unknown)} missing or unknown")
    row = np.zeros(ROW, np.int64)
    row[[KERNEL, COUNT, TIMES]] = address, op.count, op.times
    row[FIRST : FIRST + len(fields)] = [
        field.encode(op.operands[name], f"op {op.name}: operand {name}") for name, field in fields.items()
    ]
    return row


class Plan:
    """Ops and their encoded rows; `addresses` maps a kernel's name to its machine code."""

    def __init__(self, ops: list[Op], addresses: dict[str, int]):
        self.ops = ops
        self.rows = np.stack([encode(op, addresses[op.kernel.name]) for op in ops])
        ends = [i + 1 for i, op in enumerate(ops[:-1]) if op.after is not None] + [len(ops)]
        self.parts = [*zip([0, *ends[:-1]], ends, [ops[end - 1].after for end in ends], strict=True)]
        """(begin, end, what Python does then) of the runs of ops that a step is made of."""

    def replace(self, index: int, op: Op, address: int) -> None:
        """Put another op in the place of one, between two steps; the rows stay where they are."""
        self.rows[index] = encode(op, address)
        self.ops[index] = op

    def buffer_bytes(self) -> int:
        """Bytes of all arrays that ops may write, each once."""
        sizes: dict[int, int] = {}
        for op in self.ops:
            for value in op.operands.values():
                if isinstance(value, np.ndarray) and value.flags.writeable:
                    sizes[value.ctypes.data] = max(value.nbytes, sizes.get(value.ctypes.data, 0))
        return sum(sizes.values())
