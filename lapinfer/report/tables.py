"""Tables of text: aligned for a terminal, as markdown, and rows of dataclasses as CSV, JSON and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any


def aligned(rows: Sequence[Sequence[str]], left: int = 0, gap: str = "  ") -> str:
    """The first `left` columns begin at the left, the others end at the right; an empty row is a rule."""
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    rule = "-" * (sum(widths) + len(gap) * (len(widths) - 1))

    def line(row: Sequence[str]) -> str:
        if not row:
            return rule
        cells = [cell.ljust(w) for cell, w in zip(row[:left], widths, strict=False)]
        cells += [cell.rjust(w) for cell, w in zip(row[left:], widths[left:], strict=True)]
        return gap.join(cells).rstrip()

    return "\n".join(map(line, rows))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns line up in a terminal, too."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def cell(text: str, i: int) -> str:
        return text.ljust(widths[i]) if i in left else text.rjust(widths[i])

    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(map(cell, row, range(len(row)))) + " |" for row in (head, rule, *rows))


def to_csv(rows: Sequence[Any], kind: type) -> str:
    """A header line, then a line for each row, which are of this dataclass; lists are left to JSON."""
    out = io.StringIO()
    names = [f.name for f in fields(kind) if not str(f.type).startswith("list")]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue().rstrip("\n")


def to_json(rows: Sequence[Any]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def to_jsonl(rows: Sequence[Any]) -> str:
    return "\n".join(json.dumps(asdict(row)) for row in rows)
