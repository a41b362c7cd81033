"""Where a step's numbers first stopped being finite: found by running it again, op by op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lapinfer.runtime.plan import Op
from lapinfer.runtime.trace import Traceable, traced


def first_not_finite(model: Traceable, tokens: int, run: Callable[[], object]) -> str:
    """Which op gives infinities or NaN that its inputs did not have, in words. run: the step of so many tokens."""
    found: list[str] = []
    last: list[Op] = []

    def before(op: Op, inputs: np.ndarray, experts: np.ndarray | None) -> None:
        if not found and not np.isfinite(inputs).all():
            found.append(_place(last[-1] if last else op))

    def after(op: Op) -> None:
        out = op.operands.get("out")
        if isinstance(out, np.ndarray) and out.dtype == np.float32 and op.part != "head":
            finite = np.isfinite(out[:tokens]).all()
            if not found and not finite:
                found.append(_place(op))
        if model.runner.header[op.count]:
            last.append(op)

    with traced(model, before, after):
        run()
    return found[0] if found else "the head"


def _place(op: Op) -> str:
    label = "attention" if op.kernel.kind == "merge" else op.label
    return f"{label} of layer {op.layer}" if op.layer >= 0 else f"the {label}"
