"""The head: all logits; or, where it has a coarse copy, the best ones alone (kernels/best.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lapinfer.kernels.operands import (
    BEST_BLOCKS,
    BEST_ROUNDS,
    BEST_STATE,
    COARSE_HEAD,
    HEAD,
    TILE_GROUP_BYTES,
    WHOLE_HEAD,
)
from lapinfer.quant import BAND, GROUP, ROWS
from lapinfer.quant.choice import two_pass_tokens
from lapinfer.runtime.build.model_ops import ModelOps
from lapinfer.runtime.cost import Cost
from lapinfer.runtime.sizes import padded
from lapinfer.tensors import COARSE, head_name

MOST_BEST = 512
"""How many of the best: the heap of as many fits the scratch memory of any model."""

ALL_ROWS = (1 << ROWS) - 1
"""The bits of a block whose rows may all be among the best."""

MOST_SHARE = 3
"""Of more than a third of the row blocks, reading all of them in one run is faster."""


@dataclass(frozen=True, slots=True)
class BestRows:
    """What a step in which only the best logits are computed has read.

    most: how many may be asked for. tokens: wanted of a step at most, so that it is quicker than the whole head. counts
    int64 [BEST_ROUNDS]: row blocks of each round. state: a BEST_STATE. allowed int64 [tokens, row blocks]: bits of the
    rows of each block that may be among the best, where only some may.
    """

    most: int
    tokens: int
    counts: np.ndarray
    state: np.ndarray
    allowed: np.ndarray

    def allow(self, bits: Sequence[np.ndarray | None] | None) -> None:
        """Enter which rows may be among the best: bits uint16 [≥ row blocks] of each token, None for all."""
        masked = bits is not None and any(each is not None for each in bits)
        if bits is not None and masked:
            for row, each in zip(self.allowed, bits, strict=False):
                row[:] = ALL_ROWS if each is None else each[: len(row)]
        self.state[BEST_STATE.index("masked")] = masked

    @property
    def masked(self) -> bool:
        """Whether logits of rows that are not allowed are −∞: not where the whole head was read after all."""
        return bool(self.state[BEST_STATE.index("masked")]) and not self.state[BEST_STATE.index("rest")]

    @property
    def blocks(self) -> np.ndarray:
        """Row blocks that were read: in each round, and after them with the whole head; int64 [BEST_ROUNDS + 1]."""
        return np.append(self.counts, self.state[BEST_STATE.index("rest")])

    @property
    def widened(self) -> bool:
        """Whether the first margin was not enough, as errors came near it."""
        return bool(self.state[BEST_STATE.index("level")])


def head(build: ModelOps) -> BestRows | None:
    """Norm and head; what finds the best logits, where the weights have a coarse copy of it.

    The norm leaves hidden states in `build.step.hidden`, too.
    """
    spec, step, name = build.spec, build.step, head_name(build.spec)
    rows, logical = padded(spec.vocab, ROWS), (spec.vocab, spec.hidden)
    bias = None
    if spec.head_bias or rows != spec.vocab:  # padded rows can never be the maximum: −∞ once they are scaled
        bias = np.full(rows, -np.copysign(np.inf, spec.logit_scale), np.float32)
        bias[: spec.vocab] = build.weights.tensor("head.bias") if spec.head_bias else 0.0
    weights, bias_bytes = build.weights.tensor(name), 0 if bias is None else 4 * spec.vocab
    macs = spec.vocab * spec.hidden
    build.norm("norm", spec.norm, -1, "head", build.activation_kind(name), wanted=step.want, exact=step.hidden)
    best = _best_rows(build, name, bias, bias_bytes) if COARSE in build.weights.formats else None
    build.matmul(
        name, -1, "head", build.tiles, HEAD, label="head", out=step.logits, bias=bias, scale=spec.logit_scale,
        softcap=spec.logit_softcap or 0.0, count=WHOLE_HEAD, block_max=step.block_max, logical=logical,
        cost=Cost(
            weight_bytes=weights.nbytes + bias_bytes, macs=macs, steps="whole",
            round=BEST_ROUNDS, block_bytes=weights.shape[1], block_macs=ROWS * spec.hidden,
        ),
    )  # fmt: skip
    return best


def _best_rows(build: ModelOps, name: str, bias: np.ndarray | None, bias_bytes: int) -> BestRows:
    """The first pass, over the coarse copy, and the rounds of the second one, over listed row blocks."""
    spec, step = build.spec, build.step
    weights = build.weights.tensor(name)
    formats = str(build.weights.format(COARSE)), str(build.weights.format(name))
    blocks = len(weights)
    T = min(two_pass_tokens(*formats, spec.vocab, spec.hidden, build.limits.activations), len(step.logits))
    norms = np.zeros(ROWS * blocks, np.float32)
    norms[: spec.vocab] = build.weights.tensor(f"{COARSE}.norms")
    logits = np.zeros((T, ROWS * blocks), np.float32)
    largest = np.zeros((T, blocks), np.float32)
    counts, state = np.zeros(BEST_ROUNDS, np.int64), np.zeros(len(BEST_STATE), np.int64)
    allowed = np.full((T, blocks), ALL_ROWS, np.int64)
    rows = BestRows(min(MOST_BEST, blocks // 8), T, counts, state, allowed)
    table = {
        "blocks": blocks, "coarse": logits, "coarse_stride": logits.strides[0], "coarse_max": largest,
        "allowed": allowed, "norms": norms,
        "block_norms": norms.reshape(blocks, ROWS).max(axis=1), "exact": step.hidden,
        "exact_stride": step.hidden.strides[0],
        "deviation": abs(spec.logit_scale) / spec.hidden**0.5, "deviations": np.zeros(T, np.float32),
        "mark": np.zeros(blocks, np.int64), "list": np.zeros(blocks, np.int64), "worst": np.zeros(blocks, np.float32),
        "counts": rows.counts, "most_blocks": blocks // MOST_SHARE, "state": rows.state[None],
        "finished": np.zeros(1, np.int64), "logits": step.logits, "logits_stride": step.logits.strides[0],
        "block_max": step.block_max,
    }  # fmt: skip
    scratch = {"scratch": build.scratch, "scratch_stride": build.scratch.strides[0]}
    build.matmul(
        COARSE, -1, "head", build.tiles, HEAD, label="coarse head", out=logits, bias=bias, scale=spec.logit_scale,
        softcap=spec.logit_softcap or 0.0, count=COARSE_HEAD, block_max=largest, logical=(spec.vocab, spec.hidden),
        cost=Cost(
            weight_bytes=build.weights.tensor(COARSE).nbytes + 4 * spec.vocab + bias_bytes,
            macs=spec.vocab * spec.hidden, steps="best",
        ),
    )  # fmt: skip
    unit = 16 * BAND
    chunks = -(-blocks // unit)
    build.add(
        "shortlist", "shortlist", "head", -1, COARSE_HEAD, chunks, unit=unit, chunks=chunks, **scratch, **table,
    )  # fmt: skip
    groups = padded(spec.hidden) // GROUP
    for i in range(BEST_ROUNDS):
        build.add(
            build.kernel("best_rows", name), ("best", "may be best", "by wider margin")[i], "head", -1, BEST_BLOCKS, 1,
            weights=weights, groups=groups, x=build.tiles,
            tile_bytes=groups * TILE_GROUP_BYTES[build.activation_kind(name)], bias=bias, scale=spec.logit_scale,
            softcap=spec.logit_softcap or 0.0, **scratch, **table,
            cost=Cost(round=i, block_bytes=weights.shape[1], block_macs=ROWS * spec.hidden),
        )  # fmt: skip
    return rows
