"""What an op reads and computes, declared where the op is added to a plan (runtime/ops.py, runtime/build/).

Costs are linear in a few sums over steps, a `Tally`, so the meter keeps those alone, and asks ops when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lapinfer.kernels.operands import BEST_ROUNDS

Steps = Literal["all", "wanted", "whole", "best", "lone", "several"]
"""Kinds of steps: all; those that give logits or hidden states, where only tokens for which these are wanted count; of
these, those that give all logits, and those that give the best; those of one token; those of several."""


@dataclass(slots=True)
class Tally:
    """Sums over steps of one kind: steps, their tokens, experts and nodes [routed layers] that they read.

    blocks: row blocks of the head that were read for the best logits, by round [BEST_ROUNDS + 1]; block_tokens: the
    same times the tokens that they were multiplied with; of all steps, in a tally of any kind. slots: those that had
    tokens, each once per step; positions: earlier positions that tokens saw, each once per step and slot, by window
    (None: no window).
    """

    steps: int = 0
    tokens: int = 0
    slots: int = 0
    experts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    nodes: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    blocks: np.ndarray = field(default_factory=lambda: np.zeros(BEST_ROUNDS + 1, np.int64))
    block_tokens: np.ndarray = field(default_factory=lambda: np.zeros(BEST_ROUNDS + 1, np.int64))
    positions: dict[int | None, int] = field(default_factory=dict)

    def add(self, tokens: np.ndarray, experts: np.ndarray, nodes: np.ndarray) -> None:
        """Add steps: tokens [steps], experts and nodes [steps, routed layers]."""
        self.steps += len(tokens)
        self.tokens += int(tokens.sum())
        self.experts = self.experts + experts.sum(axis=0)
        self.nodes = self.nodes + nodes.sum(axis=0)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an op reads of earlier positions: keys and values, or inputs of a convolution.

    window: how many positions a token sees (None: all). bytes: of one position. macs: multiply-adds of one token with
    one position; they are not among those with weights.
    """

    window: int | None
    bytes: int
    macs: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that an op touches, and its multiply-adds with weights, in `steps` of one kind.

    weight_bytes: per step. token_bytes: of rows looked up, per token. slot_bytes: of what is kept of a sequence
    whatever its length, per slot that has tokens: read, or written at its beginning. macs: multiply-adds per token,
    with weights or a state. expert_bytes, node_bytes: per expert or node that a step reads; `routed` is then the
    layer's position among the routed ones. block_bytes, block_macs: per row block of the head that is read in a round
    (of Tally.blocks).
    """

    weight_bytes: int = 0
    token_bytes: int = 0
    slot_bytes: int = 0
    macs: int = 0
    routed: int | None = None
    expert_bytes: int = 0
    node_bytes: int = 0
    round: int | None = None
    block_bytes: int = 0
    block_macs: int = 0
    remembered: Remembered | None = None
    steps: Steps = "all"

    def touched(self, tally: Tally) -> int:
        """Bytes that the steps read, with those of nodes."""
        total = self.weight_bytes * tally.steps + self.token_bytes * tally.tokens + self.touched_nodes(tally)
        total += self.slot_bytes * tally.slots
        if self.routed is not None and self.expert_bytes and tally.steps:
            total += self.expert_bytes * int(tally.experts[self.routed])
        if self.round is not None:
            total += self.block_bytes * int(tally.blocks[self.round])
        if self.remembered is not None:
            total += self.remembered.bytes * tally.positions.get(self.remembered.window, 0)
        return total

    def touched_nodes(self, tally: Tally) -> int:
        """Bytes of nodes alone: they count as the router's, whatever the op's part."""
        if self.routed is None or not self.node_bytes or not tally.steps:
            return 0
        return self.node_bytes * int(tally.nodes[self.routed])

    def multiply_adds(self, tally: Tally) -> int:
        """Multiply-adds with weights."""
        of_blocks = 0 if self.round is None else self.block_macs * int(tally.block_tokens[self.round])
        return self.macs * tally.tokens + of_blocks

    def attention_macs(self, pos: np.ndarray) -> int:
        """Multiply-adds of attention for tokens at these positions, none of them with weights."""
        if self.remembered is None:
            return 0
        window = self.remembered.window
        seen = pos + 1 if window is None else np.minimum(pos + 1, window)
        return self.remembered.macs * int(seen.sum())


FREE = Cost()
"""An op that reads only what a step itself has written."""
