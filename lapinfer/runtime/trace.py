"""Run a step op by op from Python, to see what each matrix is multiplied with, or which op first differs.

    with traced(model, before):
        model.step(token, slot, pos, want)      # calls before(op, inputs [T, C], experts) before every matmul

Results are those of a team to the bit, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from lapinfer.kernels.operands import (
    ACT_F32,
    ACT_Q8,
    ACT_Q16,
    ACTIVATION_KINDS,
    EXPERT_TILE,
    EXPERT_TILES,
    F32_TILE_GROUP,
    KERNEL,
    Q8_TILE_GROUP,
    Q16_TILE_GROUP,
    TILE,
    TOKENS,
)
from lapinfer.parallel import in_threads
from lapinfer.quant import GROUP
from lapinfer.runtime import team
from lapinfer.runtime.plan import Op
from lapinfer.runtime.runner import Runner

Before = Callable[[Op, np.ndarray, np.ndarray | None], None]
"""Called with a matmul op and its inputs, float32 [T, C], with C rounded up to whole groups. For the experts' second
matrices there is a row for each token and expert, and the third argument is each row's expert, int64 [T]; else None."""

After = Callable[[Op], None]
"""Called after every op."""


class Traceable(Protocol):
    """A Model: whatever runs its steps with a runner."""

    @property
    def runner(self) -> Runner: ...


def activation_kind(op: Op) -> int:
    """The form of the activations that a matmul op reads."""
    return ACTIVATION_KINDS.index(op.kernel.activations)


def decode(tiles: np.ndarray, kind: int, groups: int, tokens: int) -> np.ndarray:
    """float32 [tokens, 32 · groups] of activation tiles (layout: kernels/operands.py)."""
    size = {ACT_F32: F32_TILE_GROUP, ACT_Q8: Q8_TILE_GROUP, ACT_Q16: Q16_TILE_GROUP}[kind]
    count = -(-tokens // TILE)
    stored = tiles.reshape(-1)[: count * groups * size].reshape(count, groups, size)
    if kind == ACT_F32:
        values = stored.view(np.float32).reshape(count, groups, GROUP, TILE).transpose(0, 3, 1, 2)
    else:
        codes = stored[..., : TILE * GROUP].view(np.int8).astype(np.float32)
        offset = TILE * GROUP
        if kind == ACT_Q16:
            codes = 255 * codes + stored[..., offset : 2 * offset].view(np.int8)
            offset *= 2
        scale = stored[..., offset : offset + 4 * TILE].copy().view(np.float32)
        with np.errstate(all="ignore"):  # steps whose numbers are not finite are traced, too
            values = codes.reshape(count, groups, TILE, GROUP) * scale[..., None]
        values = values.transpose(0, 2, 1, 3)
    return values.reshape(count * TILE, groups * GROUP)[:tokens]


def routed_inputs(op: Op, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [T, C] of the experts' second matrices in the first `count` tiles, and the expert of each row."""
    x, table, groups = (op.operands[key] for key in ("x", "tiles", "groups"))
    assert isinstance(x, np.ndarray)
    assert isinstance(table, np.ndarray)
    values = decode(x, activation_kind(op), int(groups), count * TILE)
    tokens = table[:count, EXPERT_TILE.index("tokens")]
    used = np.arange(TILE) < tokens[:, None]
    return values[used.reshape(-1)], np.repeat(table[:count, EXPERT_TILE.index("expert")], tokens)


class Tracer:
    """Runs steps as a Team does, one op after the other, and calls `before` with each matmul's inputs."""

    def __init__(self, runner: Runner, before: Before, after: After):
        self._runner, self._before, self._after = runner, before, after

    def run(self) -> int:
        """Run one step; the meter's counters stay as they are, and no time is returned."""
        plan, step, threads = self._runner.plan, self._runner.header, self._runner.team.threads
        for op, row in zip(plan.ops, plan.rows, strict=True):
            chunks = int(step[op.count]) * op.times
            if not chunks:
                self._after(op)
                continue
            self._show(op, step)
            kernel = team.KERNEL(int(row[KERNEL]))
            remaining = iter(range(chunks))  # shared: each chunk is taken once

            def work(thread: int, kernel=kernel, row=row, remaining=remaining) -> None:
                for chunk in remaining:
                    kernel(row.ctypes.data, step.ctypes.data, chunk, thread)

            in_threads(work, range(min(threads, chunks)), threads)
            if op.after is not None:
                op.after()
            self._after(op)
        return 0

    def _show(self, op: Op, step: np.ndarray) -> None:
        """Call `before` with the op's inputs, if it multiplies or decides by any."""
        match op.kernel.kind:
            case "matmul":
                x, tokens, groups = (op.operands[key] for key in ("x", "tokens", "groups"))
                assert isinstance(x, np.ndarray)
                self._before(op, decode(x, activation_kind(op), int(groups), int(step[int(tokens)])), None)
            case "router" | "descend" as kind:
                x = op.operands["x" if kind == "router" else "columns"]
                assert isinstance(x, np.ndarray)
                self._before(op, x[: int(step[TOKENS])].copy(), None)
            case "experts" if op.operands["tile_bytes"]:
                self._before(op, *routed_inputs(op, int(step[EXPERT_TILES])))
            case _:
                pass


@contextmanager
def traced(model: Traceable, before: Before, after: After = lambda op: None) -> Iterator[None]:
    """While open, the model's steps call `before` and `after`."""
    runner = model.runner
    usual, runner.run = runner.run, Tracer(runner, before, after).run
    try:
        yield
    finally:
        runner.run = usual
