"""The ops of a step as a table: what each one reads and computes and, analyzed, how long that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from lapinfer.kernels.operands import BEST_ROUNDS
from lapinfer.machine import largest_cache
from lapinfer.report import roofline
from lapinfer.report.costs import Costs
from lapinfer.report.fit import decode_seconds
from lapinfer.report.tables import aligned
from lapinfer.report.timing import Watch, head_blocks
from lapinfer.runtime.plan import Op
from lapinfer.runtime.predict import expected_best_blocks, expected_reads, parts_of
from lapinfer.spec import TreeSpec

if TYPE_CHECKING:
    from lapinfer.model import Model

PROMPT = 512
"""Tokens before the decoded one, and tokens of the analyzed prompt."""
DECODE_STEPS, PREFILL_STEPS = 24, 3
"""Measured steps; one before them warms up."""


LEGEND = """\
n: ops in a step. MB: bytes that they read, of weights and KV cache (kv: of positions before).
MMAC: millions of multiply-adds; MAC/B: of these a byte. experts: leaves, too, in models of trees.
coarse head, best, may be best: the passes over a head of which only the best logits are needed."""
TIMED_LEGEND = """
roof %: the least time that this machine needs for these bytes and multiply-adds, by the time
taken; above 100 where weights stay in caches, or others ran while the machine was measured.
MBU: bytes per second by the bandwidth measured."""


@dataclass(slots=True)
class Line:
    """Ops of one kind, or a part of the step: sums over `count` ops of one step. least: seconds on the roofline."""

    name: str
    kernel: str = ""
    shape: str = ""
    count: int = 0
    bytes: int = 0
    macs: int = 0
    seconds: float = 0.0
    least: float = 0.0

    def add(self, other: Line) -> None:
        self.count += other.count
        self.bytes += other.bytes
        self.macs += other.macs
        self.seconds += other.seconds
        self.least += other.least


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens of slot 0, of which the last one's logits are wanted."""

    heading: str
    token: np.ndarray
    pos: np.ndarray
    repeats: int


def explain(model: Model, analyze: bool = False, tokens: Sequence[int] | None = None, layers: bool = False) -> str:
    """Tables of one decode step after a prompt of 512 tokens and of the prompt itself (shorter if ctx is).

    analyze: run both, and add times. tokens: ids to run instead of counting ones. layers: a row for each op of each
    layer, else the same op of all layers is one row. The KV cache's slot 0 is overwritten when analyzing.
    """
    prompt = min(PROMPT, model.ctx - 1, model.max_step)
    ids = np.resize(np.arange(model.spec.vocab) if tokens is None else np.asarray(tokens), prompt + 1)
    steps = [Step(f"decode: 1 token at position {prompt}", ids[prompt:], np.arange(prompt, prompt + 1), DECODE_STEPS)]
    if prompt:
        steps.append(Step(f"prefill: {prompt} tokens from position 0", ids[:prompt], np.arange(prompt), PREFILL_STEPS))
    machine, now, blocks = None, "", []
    if analyze:
        machine = roofline.measure(model.threads, seconds=0.25)
        peaks = ", ".join(f"{kind} {peak / 1e9:,.0f}" for kind, peak in machine.peaks.items())
        now = f"\nnow, {model.threads} threads: {machine.best_bandwidth / 1e9:.1f} GB/s; GMAC/s {peaks}"
    with model.lock:
        if analyze and prompt:
            model.prefill(ids[:prompt])
        for step in steps:
            blocks.append(_block(model, step, machine, layers))
    blocks.insert(0, _title(model) + now)  # a step may have widened a layer's cache
    blocks.append(LEGEND + (TIMED_LEGEND if analyze else ""))
    return "\n\n".join(blocks)


def _title(model: Model) -> str:
    stored = ", ".join(f"{size / 1e6:,.1f} MB {name}" for name, size in Costs.of(model).stored.items())
    spec = model.spec
    return (
        f"{model.name}\n{spec.family}, {len(spec.layers)} layers, {stored}, "
        f"KV {_kinds(model)}, {model.threads} thread{'s' if model.threads > 1 else ''}"
    )


def _kinds(model: Model) -> str:
    """The format of the cache, and of how many layers where a step has widened some."""
    counted = Counter(model.kv)
    if len(counted) == 1:
        return model.kv[0]
    return " and ".join(f"{kind} ({count} layer{'s' * (count > 1)})" for kind, count in counted.items())


def _block(model: Model, step: Step, machine: roofline.Roofline | None, layers: bool) -> str:
    """One step's table and its summary."""
    watch, slot = Watch(model), np.zeros(len(step.pos), np.int64)
    meter, ops, costs = watch.meter, model.runner.plan.ops, Costs.of(model)
    if machine is None:
        best = expected_best_blocks(model.spec, costs.formats)
        rounds = None if best is None else np.array([best] + [0] * BEST_ROUNDS)
        meter.record(slot, step.pos, 1, 0, *expected_reads(model.spec, len(step.pos)), blocks=rounds)
    else:
        watch.steps([(step.token, slot, step.pos)] * (step.repeats + 1))
        best = head_blocks(model)
        costs = Costs.of(model)  # a step may have widened a layer's cache
    rows = meter.by_op()
    lines = [_line(op, row, step.pos, meter.steps, machine) for op, row in zip(ops, rows, strict=True)]
    total = Line("step")
    by_part = {part: Line(part) for part in parts_of(model.spec)}
    for op, line, row in zip(ops, lines, rows, strict=True):
        by_part[op.part].add(line)
        if nodes := row["nodes"] // meter.steps:  # of an op that is a descent and its leaf in one
            by_part[op.part].bytes -= nodes
            by_part["router"].bytes += nodes
        total.add(line)
    if not layers:
        lines = _summed(ops, lines)
    columns = [*_COLUMNS, *(_TIMED if machine is not None else ())]
    table = [[head for head, _ in columns]]
    for group in (lines, list(by_part.values()), [total]):
        table.append([])
        table += [[show(line, total) for _, show in columns] for line in group]
    predicted = sum(costs.touched(step.pos, read_by=None if machine is None else model, best_blocks=best).values())
    text = (
        f"{step.heading}\n{aligned(table, left=3, gap=' ')}\n"
        f"predicted from the spec {predicted:,} bytes, metered {total.bytes:,} bytes"
    )
    if choice := _choice(costs):
        text += f"\n{choice}"
    if machine is not None:
        seconds = median(watch.seconds)
        speed, bandwidth = total.bytes / seconds, machine.best_bandwidth
        text += (
            f"\n{len(step.pos) / seconds:,.1f} tok/s ({seconds * 1e3:,.2f} ms per step, median of {step.repeats}), "
            f"{speed / 1e9:.1f} GB/s: {100 * speed / bandwidth:.0f} % MBU"
        )
        if len(step.pos) == 1 and costs.weight_bytes > largest_cache():
            rate = roofline.weights_bandwidth(costs.main_format, model.threads)
            foreseen = decode_seconds(model.spec, total.bytes, rate)
            text += f"\nexpected of these bytes: {1 / foreseen:,.1f} tok/s"
    return text


def _line(op: Op, row: dict, pos: np.ndarray, steps: int, machine: roofline.Roofline | None) -> Line:
    macs, read = row["macs"] // steps + op.cost.attention_macs(pos), row["bytes"] // steps
    kind = "int8" if op.kernel.activations in ("q8", "q16") else "float32"
    least = 0.0 if machine is None else machine.seconds(read, macs, kind)
    return Line(op.name, op.kernel.name, op.shape, 1, read, macs, row["seconds"] / steps, least)


def _summed(ops: Sequence[Op], lines: Sequence[Line]) -> list[Line]:
    """Equal ops of different layers as one line."""
    kinds: dict[tuple, Line] = {}
    for op, line in zip(ops, lines, strict=True):
        # What routed layers read differs by their choices alone.
        numbers = () if op.cost.routed is not None else (line.bytes, line.macs)
        kind = (op.label, op.part, line.kernel, line.shape, *numbers)
        kinds.setdefault(kind, Line(op.label, line.kernel, line.shape)).add(line)
    return list(kinds.values())


def _choice(costs: Costs) -> str:
    """What one expert or leaf costs, of each kind of routed layer."""
    kinds: dict[tuple[int, int], str] = {}
    for i, layer in enumerate(costs.spec.layers):
        ff = layer.feed_forward
        if ff.router is None:
            continue
        size, macs = costs.expert(i)
        noun = "a leaf" if isinstance(ff.router, TreeSpec) and not ff.router.neurons else "an expert"
        kinds[size, macs] = (
            f"{noun}: {size / 1e6:,.3f} MB, {macs / 1e6:,.3f} MMAC; a token gets {ff.active} of {ff.experts} per layer"
        )
    return "\n".join(kinds.values())


def _ratio(part: float, whole: float, form: str) -> str:
    return form.format(part / whole) if part and whole else ""


_COLUMNS = (
    ("op", lambda line, total: line.name),
    ("kernel", lambda line, total: line.kernel),
    ("shape", lambda line, total: line.shape),
    ("n", lambda line, total: str(line.count)),
    ("MB", lambda line, total: _ratio(line.bytes, 1e6, "{:,.2f}")),
    ("MMAC", lambda line, total: _ratio(line.macs, 1e6, "{:,.1f}")),
    ("MAC/B", lambda line, total: _ratio(line.macs, line.bytes, "{:.1f}")),
)
_TIMED = (
    ("ms", lambda line, total: _ratio(line.seconds, 1e-3, "{:,.3f}")),
    ("time %", lambda line, total: _ratio(line.seconds, total.seconds / 100, "{:.1f}")),
    ("GB/s", lambda line, total: _ratio(line.bytes, line.seconds * 1e9, "{:.1f}")),
    ("GMAC/s", lambda line, total: _ratio(line.macs, line.seconds * 1e9, "{:,.0f}")),
    ("roof %", lambda line, total: _ratio(line.least, line.seconds / 100, "{:.0f}")),
)
"""Heading, and the text of a line's cell. roof: the least time that this machine needs, by the time taken."""
