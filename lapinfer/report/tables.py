"""Tables of text: aligned for a terminal, as markdown, and rows of dataclasses as CSV, JSON and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from lapinfer.shown import columns, padded, shown_line


def aligned(rows: Sequence[Sequence[str]], left: int = 0, gap: str = "  ") -> str:
    """The first `left` columns begin at the left, the others end at the right; an empty row is a rule."""
    rows = [[shown_line(cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*filter(None, rows), strict=True)]
    rule = "-" * (sum(widths) + len(gap) * (len(widths) - 1))

    def line(row: Sequence[str]) -> str:
        if not row:
            return rule
        cells = [padded(cell, w) for cell, w in zip(row[:left], widths, strict=False)]
        cells += [padded(cell, w, right=True) for cell, w in zip(row[left:], widths[left:], strict=True)]
        return gap.join(cells).rstrip()

    return "\n".join(map(line, rows))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns line up in a terminal, too."""
    head, *rows = [[shown_line(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(columns(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def cell(text: str, i: int) -> str:
        return padded(text, widths[i], right=i not in left)

    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(map(cell, row, range(len(row)))) + " |" for row in (head, rule, *rows))


def to_csv(rows: Sequence[Any], kind: type) -> str:
    """A header line, then a line for each row, which are of this dataclass; lists are left to JSON."""
    out = io.StringIO()
    names = [f.name for f in fields(kind) if not str(f.type).startswith("list")]
    writer = csv.DictWriter(out, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in asdict(row).items()} for row in rows)
    return out.getvalue().rstrip("\n")


def _no_formula(value: Any) -> Any:
    """As a cell: a spreadsheet would compute a name that begins like a formula."""
    if not isinstance(value, str):
        return value
    line = shown_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def to_json(rows: Sequence[Any]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def to_jsonl(rows: Sequence[Any]) -> str:
    return "\n".join(json.dumps(asdict(row)) for row in rows)
