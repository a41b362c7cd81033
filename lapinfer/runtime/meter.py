"""What steps touched: bytes read of weights and of the KV cache, multiply-adds, and time, by part of the model.

Touched means what a step had to read: weights with their scales, the rows of the embedding that were looked up, and
the keys, values and inputs of convolutions that its tokens see (each once a step and slot). Of experts, those that a
token of the step was really routed to, once a step. It is not what is resident, nor what was faulted in from disk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lapinfer.kernels.control import CALLS, COUNTER, NS
from lapinfer.kernels.operands import ANY_WANT, WANT_TILES
from lapinfer.runtime.plan import Plan

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
        routed = [(i, op.notes) for i, op in enumerate(ops) if "routed" in op.notes]
        self._expert_ops = np.array([i for i, _ in routed], np.int64)
        self._positions = np.array([notes["routed"] for _, notes in routed], np.int64)
        self._expert_bytes = np.array([notes["expert_bytes"] for _, notes in routed], np.int64)
        self._expert_macs = np.array([notes["expert_macs"] for _, notes in routed], np.int64)
        self._remembered = [(i, *op.notes["remembered"]) for i, op in enumerate(ops) if "remembered" in op.notes]
        self._windows = {window for _, window, _ in self._remembered}
        self.reset()

    def reset(self) -> None:
        n = len(self._plan.ops)
        self.steps = self.tokens = self.ns = self._experts = 0
        self.counters = np.zeros((n, COUNTER), np.int64)
        self._bytes = np.zeros(n, np.int64)
        self._macs = np.zeros(n, np.int64)
        self._noted: list[tuple[np.ndarray, np.ndarray, int, np.ndarray]] = []

    def record(self, slot: np.ndarray, pos: np.ndarray, wanted: int, ns: int, counts: np.ndarray) -> None:
        """Note one step of len(pos) tokens; counts [routed layers, E]: how many of them each expert got."""
        self.steps += 1
        self.tokens += len(pos)
        self.ns += ns
        self._noted.append((slot.copy(), pos.copy(), wanted, counts.copy()))
        if len(self._noted) >= NOTED_STEPS:
            self._add_up()

    def _add_up(self) -> None:
        """Bring the sums up to date with the steps noted."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        tokens = np.array([len(pos) for _, pos, _, _ in noted], np.int64)
        wanted = np.array([wanted for _, _, wanted, _ in noted], np.int64)
        steps = np.where(self._wanted, np.count_nonzero(wanted), len(noted))
        units = np.where(self._wanted, wanted.sum(), tokens.sum())
        self._bytes += self._weight_bytes * steps + self._row_bytes * units
        self._macs += self._op_macs * units
        if len(self._expert_ops):
            counts = np.stack([counts for _, _, _, counts in noted])
            active, pairs = np.count_nonzero(counts, axis=(0, 2)), counts.sum(axis=(0, 2))
            self._experts += int(active.sum())
            self._bytes[self._expert_ops] += self._expert_bytes * active[self._positions]
            self._macs[self._expert_ops] += self._expert_macs * pairs[self._positions]
        seen = {window: sum(keys_seen(window, slot, pos) for slot, pos, _, _ in noted) for window in self._windows}
        for i, window, position_bytes in self._remembered:
            self._bytes[i] += seen[window] * position_bytes

    @property
    def bytes(self) -> np.ndarray:
        """Touched by each op."""
        self._add_up()
        return self._bytes

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
        for op, count in zip(self._plan.ops, self.bytes, strict=True):
            parts[op.part] = parts.get(op.part, 0) + int(count)
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.ns / 1e9,
            "bytes": int(self.bytes.sum()),
            "macs": int(self.macs.sum()),
            "experts": self.experts,
            **{f"bytes_{part}": count for part, count in parts.items()},
        }

    def by_op(self) -> list[dict[str, object]]:
        """One row an op: name, part, calls, seconds, bytes, multiply-adds."""
        tick = self._ns_per_tick()
        return [
            {
                "op": op.name,
                "kernel": op.kernel,
                "part": op.part,
                "calls": int(count[CALLS]),
                "seconds": float(count[NS]) * tick / 1e9,
                "bytes": int(touched),
                "macs": int(macs),
            }
            for op, count, touched, macs in zip(self._plan.ops, self.counters, self.bytes, self.macs, strict=True)
        ]
