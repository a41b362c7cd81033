"""What a model takes, packed in each way, as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lapinfer.digits import number, size
from lapinfer.report.fit import Fit
from lapinfer.report.tables import aligned

UNKNOWN = "–"


def fit_tables(estimates: Sequence[Fit], bound: int | None) -> str:
    """Memory by context, bytes and speed of a token; then, where experts must stay on disk, what that makes of it."""
    parts = [_memory_table(estimates, bound)]
    if any(fit.on_disk is not None for fit in estimates):
        parts.append(_disk_table(estimates))
    return "\n\n".join(parts)


def _memory_table(estimates: Sequence[Fit], bound: int | None) -> str:
    """Memory that there is not stands in parentheses."""
    lengths = [room.ctx for room in estimates[0].contexts]
    head = ["as", "packed", *(f"{ctx:,}" for ctx in lengths), "a token", "tok/s"]
    head[2] = f"with {head[2]}"
    missing, rows = False, []
    marks = len(estimates) > 1 and any(fit.default for fit in estimates)
    for fit in _distinct(estimates):
        memory = [_memory(room.memory, bound) for room in fit.contexts]
        missing |= any(cell.startswith("(") for cell in memory)
        rows.append([_name(fit, marks), size(fit.packed), *memory, size(fit.touched), _speed(fit.tokens_per_second)])
    meanings = [f"with …: memory for so many positions{', (…): more than there is' * missing}"]
    meanings.append(f"a token: what it touches, after {lengths[0] // 2:,} others")
    meanings.append("tok/s: decoding, foreseen; other programs that run now slow it down")
    if marks:
        meanings.append("*: as --quant auto packs it")
    return "\n".join((aligned([head, *rows], left=1), *meanings))


def _disk_table(estimates: Sequence[Fit]) -> str:
    head = ["as", "experts in memory", "read a token", "tok/s"]
    rows = []
    for fit in estimates:
        if (kept := fit.on_disk) is not None:
            share = f"{kept.kept:,} of {kept.experts:,} ({kept.share:.0%})"
            rows.append([_name(fit, len(estimates) > 1), share, size(kept.read), _speed(kept.tokens_per_second)])
    return aligned([head, *rows], left=1) + "\nexperts on disk, as --memory has them, if all are chosen alike"


def _distinct(estimates: Sequence[Fit]) -> list[Fit]:
    """Ways to pack a model that come to the same, since it is stored so, share a row."""
    rows: dict[Fit, list[str]] = {}
    for fit in estimates:
        rows.setdefault(replace(fit, quant=""), []).append(fit.label)
    return [replace(fit, quant=", ".join(labels)) for fit, labels in rows.items()]


def _memory(nbytes: int, bound: int | None) -> str:
    return size(nbytes) if bound is None or nbytes <= bound else f"({size(nbytes)})"


def _name(fit: Fit, marks: bool) -> str:
    return f"{fit.label}{' *' * (marks and fit.default)}"


def _speed(tokens_per_second: float | None) -> str:
    return UNKNOWN if tokens_per_second is None else number(tokens_per_second, 2)
