"""What steps touched: bytes read of weights and of the KV cache, multiply-adds, and time, by part of the model.

Touched means what a step had to read: weights with their scales, the rows of the embedding that were looked up, and
the keys, values and inputs of convolutions that its tokens see (each once a step and slot). Of experts, those that a
token of the step was really routed to, once a step. It is not what is resident, nor what was faulted in from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lapinfer.kernels.control import CALLS, COUNTER, NS
from lapinfer.kernels.operands import ANY_WANT, WANT_TILES
from lapinfer.runtime.plan import Op, Plan

NOTED_STEPS = 64
"""Steps that are added up together."""


def keys_seen(window: int | None, slot: np.ndarray, pos: np.ndarray) -> int:
    """How many positions a step's tokens see in a layer of this window, each counted once a slot."""
    keys = 0
    for s in set(slot.tolist()):
        seen = pos[slot == s]
        first = 0 if window is None else max(int(seen.min()) - window + 1, 0)
        keys += int(seen.max()) + 1 - first
    return keys


class _Chosen:
    """Ops whose bytes depend on how many experts, or nodes, a step has read.

    Their notes say how many bytes each has (`expert_bytes`), multiply-adds a token (`expert_macs`, of so many
    `experts`), and, where an op is not part of every step, whether it is for a `lone` token or for several.
    """

    def __init__(self, ops: list[Op], kind: str):
        found = [(i, op.notes) for i, op in enumerate(ops) if f"{kind}_bytes" in op.notes]
        self.ops = np.array([i for i, _ in found], np.int64)
        self.positions = np.array([notes["routed"] for _, notes in found], np.int64)
        self.bytes = np.array([notes[f"{kind}_bytes"] for _, notes in found], np.int64)
        self.macs = np.array([notes[f"{kind}_macs"] * notes.get(f"{kind}s", 1) for _, notes in found], np.int64)
        self.steps = np.array([{None: 0, True: 1, False: 2}[notes.get("lone")] for _, notes in found], np.int64)

    def add(self, bytes: np.ndarray, macs: np.ndarray, tokens: np.ndarray, read: np.ndarray) -> None:
        """To each op's sums; tokens [steps], read [steps, routed layers]."""
        if not len(self.ops):
            return
        lone = tokens == 1
        of_steps = np.stack([read.sum(axis=0), read[lone].sum(axis=0), read[~lone].sum(axis=0)])
        of_tokens = np.array([tokens.sum(), tokens[lone].sum(), tokens[~lone].sum()])
        bytes[self.ops] += self.bytes * of_steps[self.steps, self.positions]
        macs[self.ops] += self.macs * of_tokens[self.steps]


class Meter:
    """Accumulates over steps; `totals()` and `by_op()` read it, `reset()` starts anew.

    Steps are only noted when they end, and added up some dozen at a time: after a step that has streamed all weights
    through the caches, every line of Python and NumPy comes from memory, and would cost percents of a small model's
    time. `counters` [ops, COUNTER] are added to by the team itself.
    """

    def __init__(self, plan: Plan, ns_per_tick: Callable[[], float]):
        self._plan, self._ns_per_tick = plan, ns_per_tick
        ops = plan.ops
        self._wanted = np.array([op.count in (ANY_WANT, WANT_TILES) for op in ops])
        self._weight_bytes = np.array([op.weight_bytes for op in ops], np.int64)
        self._row_bytes = np.array([op.notes.get("row_bytes", 0) for op in ops], np.int64)
        self._op_macs = np.array([op.macs for op in ops], np.int64)
        self._experts_of = _Chosen(ops, "expert")
        self._nodes_of = _Chosen(ops, "node")
        self._remembered = [(i, *op.notes["remembered"]) for i, op in enumerate(ops) if "remembered" in op.notes]
        self._windows = {window for _, window, _ in self._remembered}
        self.reset()

    def reset(self) -> None:
        n = len(self._plan.ops)
        self.steps = self.tokens = self.ns = self._experts = 0
        self.counters = np.zeros((n, COUNTER), np.int64)
        self._bytes = np.zeros(n, np.int64)
        self._node_bytes = np.zeros(n, np.int64)  # beside those, and accounted to the router whatever the op
        self._macs = np.zeros(n, np.int64)
        self._noted: list[tuple[np.ndarray, np.ndarray, int, np.ndarray, np.ndarray]] = []

    def record(
        self, slot: np.ndarray, pos: np.ndarray, wanted: int, ns: int, distinct: np.ndarray, nodes: np.ndarray
    ) -> None:
        """Note one step of len(pos) tokens; distinct, nodes [routed layers]: experts and nodes that it has read."""
        self.steps += 1
        self.tokens += len(pos)
        self.ns += ns
        self._noted.append((slot.copy(), pos.copy(), wanted, distinct.copy(), nodes.copy()))
        if len(self._noted) >= NOTED_STEPS:
            self._add_up()

    def _add_up(self) -> None:
        """Bring the sums up to date with the steps noted."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        tokens = np.array([len(pos) for _, pos, _, _, _ in noted], np.int64)
        wanted = np.array([wanted for _, _, wanted, _, _ in noted], np.int64)
        steps = np.where(self._wanted, np.count_nonzero(wanted), len(noted))
        units = np.where(self._wanted, wanted.sum(), tokens.sum())
        self._bytes += self._weight_bytes * steps + self._row_bytes * units
        self._macs += self._op_macs * units
        self._experts_of.add(self._bytes, self._macs, tokens, np.stack([distinct for _, _, _, distinct, _ in noted]))
        self._nodes_of.add(self._node_bytes, self._macs, tokens, np.stack([nodes for _, _, _, _, nodes in noted]))
        self._experts += sum(int(distinct.sum()) for _, _, _, distinct, _ in noted)
        seen = {window: sum(keys_seen(window, slot, pos) for slot, pos, *_ in noted) for window in self._windows}
        for i, window, position_bytes in self._remembered:
            self._bytes[i] += seen[window] * position_bytes

    @property
    def bytes(self) -> np.ndarray:
        """Touched by each op."""
        self._add_up()
        return self._bytes + self._node_bytes

    @property
    def macs(self) -> np.ndarray:
        """Multiply-adds of each op."""
        self._add_up()
        return self._macs

    @property
    def experts(self) -> int:
        """Experts read, each once a step and layer, shared ones included."""
        self._add_up()
        return self._experts

    def totals(self) -> dict[str, float]:
        """Sums over all steps: steps, tokens, seconds, bytes, bytes by part, multiply-adds, experts read."""
        parts: dict[str, int] = {}
        for op, count, nodes in zip(self._plan.ops, self.bytes, self._node_bytes, strict=True):
            parts[op.part] = parts.get(op.part, 0) + int(count - nodes)
            if nodes:
                parts["router"] = parts.get("router", 0) + int(nodes)
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.ns / 1e9,
            "bytes": int(self.bytes.sum()),
            "macs": int(self.macs.sum()),
            "experts": self.experts,
            **{f"bytes_{part}": count for part, count in parts.items()},
        }

    def by_op(self) -> list[dict[str, Any]]:
        """One row an op: name, part, calls, seconds, bytes (`nodes`: of them, those of nodes), multiply-adds."""
        tick, everything = self._ns_per_tick(), self.bytes
        return [
            {
                "op": op.name,
                "kernel": op.kernel.name,
                "part": op.part,
                "calls": int(count[CALLS]),
                "seconds": float(count[NS]) * tick / 1e9,
                "bytes": int(touched),
                "nodes": int(nodes),
                "macs": int(macs),
            }
            for op, count, touched, nodes, macs in zip(
                self._plan.ops, self.counters, everything, self._node_bytes, self.macs, strict=True
            )
        ]
