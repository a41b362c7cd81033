"""What steps touched: bytes read of weights and of the KV cache, multiply-adds, and time, by part of the model.

Touched is what a step had to read: weights with their scales, the rows that were looked up in the embedding, and the
keys, values and inputs of convolutions that its tokens see, and the states of recurrences (each once per step and
slot). Of experts, those that a
token of the step was routed to, each once per step. It is neither what is resident nor what was read from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from lapinfer.kernels.control import CALLS, COUNTER, NS
from lapinfer.runtime.cost import Steps, Tally
from lapinfer.runtime.plan import Plan

NOTED_STEPS = 64
"""Steps that are added up together."""
STEPS: tuple[Steps, ...] = get_args(Steps)
Seen = dict[int | None, int]
Noted = tuple[np.ndarray, np.ndarray, int, int, np.ndarray, np.ndarray, np.ndarray | None, bool, Seen]
"""A step: slots and positions of its tokens, logits wanted, nanoseconds, experts and nodes read, blocks of the head,
whether hidden states alone, and positions that its tokens see, by window, once one of the meters that note it has
counted them."""


def positions_seen(window: int | None, slot: np.ndarray, pos: np.ndarray) -> int:
    """How many positions a step's tokens see in a layer with this window, each counted once per slot."""
    total = 0
    for s in set(slot.tolist()):
        own = pos[slot == s]
        first = 0 if window is None else max(int(own.min()) - window + 1, 0)
        total += int(own.max()) + 1 - first
    return total


def _seen(step: Noted, window: int | None) -> int:
    slot, pos, *_, known = step
    if window not in known:
        known[window] = positions_seen(window, slot, pos)
    return known[window]


class Meter:
    """Accumulates over steps; `totals()` and `by_op()` read the sums, `reset()` clears them.

    Steps are only noted when they end, and added up some dozens at a time: after a step that streams all weights
    through the caches, every line of Python and NumPy comes from memory, which would cost percents of a small model's
    time. The team itself adds to `counters` [ops, COUNTER].
    """

    def __init__(self, plan: Plan, ns_per_tick: Callable[[], float]):
        self._plan, self._ns_per_tick = plan, ns_per_tick
        self.counters = np.zeros((len(plan.ops), COUNTER), np.int64)
        self._windows = {op.cost.remembered.window for op in plan.ops if op.cost.remembered is not None}
        self._by_slot = any(op.cost.slot_bytes for op in plan.ops)
        self._newest: Noted | None = None
        self.reset()

    def reset(self) -> None:
        self.steps = self.tokens = self.ns = 0
        self.counters[:] = 0
        self._tallies: dict[Steps, Tally] = {kind: Tally() for kind in STEPS}
        self._noted: list[Noted] = []

    def record(
        self, slot: np.ndarray, pos: np.ndarray, wanted: int, ns: int, distinct: np.ndarray, nodes: np.ndarray,
        blocks: np.ndarray | None = None, *, hidden: bool = False,
    ) -> None:  # fmt: skip
        """Note one step of len(pos) tokens. distinct, nodes [routed layers]: experts and nodes that it read.

        blocks [BEST_ROUNDS + 1]: row blocks of the head that it read for the best logits, None for all logits.
        hidden: what was wanted are hidden states, and no logits.
        """
        blocks = None if blocks is None else blocks.copy()
        self._note((slot.copy(), pos.copy(), wanted, ns, distinct.copy(), nodes.copy(), blocks, hidden, {}))

    def follow(self, other: Meter) -> None:
        """Note the step, too, that another meter of these ops has noted last."""
        if other._newest is not None:
            self._note(other._newest)

    def _note(self, step: Noted) -> None:
        self.steps += 1
        self.tokens += len(step[0])
        self.ns += step[3]
        self._newest = step
        self._noted.append(step)
        if len(self._noted) >= NOTED_STEPS:
            self._add_up()

    def _add_up(self) -> dict[Steps, Tally]:
        """Bring the tallies up to date with the steps noted."""
        tallies = self._tallies
        if not self._noted:
            return tallies
        noted, self._noted = self._noted, []
        _, positions, wanted, _, experts, nodes, blocks, hidden, _ = zip(*noted, strict=True)
        tokens, wanted = np.array([len(pos) for pos in positions]), np.array(wanted)
        experts, nodes = np.stack(experts), np.stack(nodes)
        tallies["all"].add(tokens, experts, nodes)
        if self._by_slot:
            tallies["all"].slots += sum(len(set(slot.tolist())) for slot, *_ in noted)
        some, lone, several = wanted > 0, tokens == 1, tokens > 1
        tallies["wanted"].add(wanted[some], experts[some], nodes[some])
        best = np.array([read is not None for read in blocks])
        whole = some & ~best & ~np.array(hidden)
        tallies["whole"].add(wanted[whole], experts[whole], nodes[whole])
        tallies["best"].add(wanted[best], experts[best], nodes[best])
        if best.any():
            read = np.stack([read for read in blocks if read is not None])
            for tally in tallies.values():
                tally.blocks = tally.blocks + read.sum(axis=0)
                tally.block_tokens = tally.block_tokens + wanted[best] @ read
        tallies["lone"].add(tokens[lone], experts[lone], nodes[lone])
        tallies["several"].add(tokens[several], experts[several], nodes[several])
        seen = tallies["all"].positions
        for window in self._windows:
            seen[window] = seen.get(window, 0) + sum(_seen(step, window) for step in noted)
        return tallies

    @property
    def bytes(self) -> np.ndarray:
        """Touched by each op, int64 [ops]."""
        tallies = self._add_up()
        return np.array([op.cost.touched(tallies[op.cost.steps]) for op in self._plan.ops], np.int64)

    @property
    def macs(self) -> np.ndarray:
        """Multiply-adds of each op, int64 [ops]."""
        tallies = self._add_up()
        return np.array([op.cost.multiply_adds(tallies[op.cost.steps]) for op in self._plan.ops], np.int64)

    @property
    def experts(self) -> int:
        """Experts read, each once per step and layer, shared ones included."""
        return int(self._add_up()["all"].experts.sum())

    def _node_bytes(self) -> list[int]:
        """Of the bytes of each op, those of nodes."""
        tallies = self._add_up()
        return [op.cost.touched_nodes(tallies[op.cost.steps]) for op in self._plan.ops]

    def parts(self) -> dict[str, int]:
        """Touched by part of the model."""
        parts: dict[str, int] = {}
        for op, touched, nodes in zip(self._plan.ops, self.bytes, self._node_bytes(), strict=True):
            parts[op.part] = parts.get(op.part, 0) + int(touched) - nodes
            if nodes:
                parts["router"] = parts.get("router", 0) + nodes
        return parts

    def totals(self) -> dict[str, float]:
        """Sums over all steps: steps, tokens, seconds, bytes, bytes by part, multiply-adds, experts read."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.ns / 1e9,
            "bytes": int(self.bytes.sum()),
            "macs": int(self.macs.sum()),
            "experts": self.experts,
            **{f"bytes_{part}": count for part, count in self.parts().items()},
        }

    def by_op(self) -> list[dict[str, Any]]:
        """One row per op: name, part, calls, seconds, bytes (`nodes`: of them, those of nodes), multiply-adds."""
        tick = self._ns_per_tick()
        return [
            {
                "op": op.name,
                "kernel": op.kernel.name,
                "part": op.part,
                "calls": int(count[CALLS]),
                "seconds": float(count[NS]) * tick / 1e9,
                "bytes": int(touched),
                "nodes": nodes,
                "macs": int(macs),
            }
            for op, count, touched, nodes, macs in zip(
                self._plan.ops, self.counters, self.bytes, self._node_bytes(), self.macs, strict=True
            )
        ]
