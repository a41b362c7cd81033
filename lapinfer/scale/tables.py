"""A study as tables: for the terminal, and for the page."""

from __future__ import annotations

from collections.abc import Callable

from lapinfer.digits import number, size
from lapinfer.report.drawing import Table
from lapinfer.report.tables import aligned
from lapinfer.scale.study import Row, Study, crossings
from lapinfer.scale.words import money

COLUMNS: dict[str, Callable[[Row], str]] = {
    "nodes": lambda row: str(row.nodes),
    "sequences": lambda row: f"{row.batch:,}",
    "tok/s": lambda row: number(row.tokens_per_second, 3),
    "per node": lambda row: number(row.per_node, 3),
    "cost of 1 M": lambda row: money(row.cost) if row.fits else "does not fit",
    "ms a token": lambda row: number(1e3 * row.latency, 3),
    "waiting": lambda row: f"{100 * row.waiting:.0f} %",
    "kB a token": lambda row: number(row.bytes / 1e3, 3),
    "messages": lambda row: number(row.messages, 3),
    "expert batch": lambda row: number(row.expert_batch, 3) if row.expert_batch else "",
    "node memory": lambda row: size(row.memory),
}
"""Heading, and cell. kB and messages are those of the network, for a token of an answer."""


def rows_table(study: Study, nodes: int | None = None) -> Table:
    rows = [
        [row.model, row.arrangement, *(cell(row) for cell in COLUMNS.values())]
        for row in study.rows
        if nodes in (None, row.nodes)
    ]
    where = "" if nodes is None else f" on {nodes} nodes"
    return Table(f"What was simulated{where}", ["model", "arrangement", *COLUMNS], rows)


def crossings_table(study: Study) -> Table:
    rows = [
        [
            c.model, str(c.nodes), "never" if c.since is None else f"{c.since:,}",
            "no replica fits" if c.best is None else f"{c.best:.2f}", f"{c.batch:,}", c.arrangement,
        ]
        for c in crossings(study)
    ]  # fmt: skip
    head = ["model", "nodes", "pay from, sequences", "best, of replicas", "with sequences", "arrangement"]
    return Table("Where experts apart begin to pay", head, rows)


def text(study: Study) -> str:
    """For the terminal: the most nodes, and where arrangements cross."""
    tables = [rows_table(study, max(study.options.nodes)), crossings_table(study)]
    return "\n\n".join(
        aligned([table.head, [], *table.rows], left=2 if table is tables[0] else 1) for table in tables if table.rows
    )
