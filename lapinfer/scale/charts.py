"""The pictures of a study, each with the same in figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lapinfer.digits import number
from lapinfer.report.charts import KINDS, letter
from lapinfer.report.drawing import Axis, Bar, Bars, Chart, Key, Line, Mark, Table, megabytes
from lapinfer.scale.simulate import ARRANGEMENTS, Arrangement
from lapinfer.scale.study import Row, Study
from lapinfer.scale.subject import Subject
from lapinfer.scale.words import money

SHORT: dict[Arrangement, str] = {"replicas": "", "one home": " one home", "all homes": " apart"}
"""What the arrangement adds to a model's letter."""


@dataclass(frozen=True, slots=True)
class _Series:
    """Of a model in an arrangement: its rows by what is drawn along the horizontal axis."""

    subject: Subject
    letter: str
    arrangement: Arrangement
    rows: list[Row]

    @property
    def name(self) -> str:
        return f"{self.letter} {self.subject.name}, {self.arrangement}"


def title(i: int, subject: Subject) -> str:
    return f"{letter(i)} {subject.name}"


def cost_chart(study: Study) -> Chart:
    batch = max(study.options.batches)
    return _chart(
        study, f"Cost of a million tokens by nodes, {batch:,} sequences", "nodes", "cost of 1 M tokens",
        lambda row: row.nodes, lambda row: row.cost, _series(study, batch=batch), money,
    )  # fmt: skip


def speed_chart(study: Study) -> Chart:
    nodes = max(study.options.nodes)
    return _chart(
        study, f"Tokens per second by sequences, on {nodes} nodes", "sequences", "tok/s of all nodes",
        lambda row: row.batch, lambda row: row.tokens_per_second, _series(study, nodes=nodes),
        lambda value: number(value, 3),
    )  # fmt: skip


def waiting_chart(study: Study) -> Chart | None:
    """Of models whose experts are apart; None where there are none."""
    nodes = max(study.options.nodes)
    series = [each for each in _series(study, nodes=nodes) if each.arrangement != "replicas"]
    if not series:
        return None
    return _chart(
        study, f"Share of the nodes' time in which they wait, on {nodes} nodes", "sequences", "% of the nodes' time",
        lambda row: row.batch, lambda row: 100 * row.waiting, series, lambda value: f"{value:.0f} %",
        Axis("% of the nodes' time", 0, 105, log=False),
    )  # fmt: skip


def memory_chart(study: Study) -> Bars:
    """A node's memory, as a replica and apart, at the most nodes and sequences."""
    nodes, batch = max(study.options.nodes), max(study.options.batches)
    bars, rows = [], []
    for i, subject in enumerate(study.subjects):
        for row in study.rows:
            if row.model == subject.name and row.nodes == nodes and row.batch == batch:
                name = f"{title(i, subject)}, {row.arrangement}"
                told = f"{megabytes(row.memory)} MB{'' if row.fits else ', does not fit'}"
                bars.append(Bar(name, [(row.memory, subject.kind, f"{name}: {told}")], told, letter=letter(i)))
                rows.append([name, megabytes(row.memory), "yes" if row.fits else "no"])
    caption = f"Memory of the node that needs most, {nodes} nodes, {batch:,} sequences"
    table = Table(caption, ["model", "MB", "fits"], rows)
    return Bars("Memory of the node that needs most", bars, [], table)


def _series(study: Study, **where: int) -> list[_Series]:
    found = []
    for i, subject in enumerate(study.subjects):
        for arrangement in ARRANGEMENTS:
            if rows := study.of(subject.name, arrangement, **where):
                found.append(_Series(subject, letter(i), arrangement, rows))
    return found


def _chart(
    study: Study, label: str, x_name: str, y_name: str, x: Callable[[Row], float], y: Callable[[Row], float],
    series: Sequence[_Series], told: Callable[[float], str], axis: Axis | None = None,
) -> Chart:  # fmt: skip
    lines, marks, rows = [], [], []
    places = sorted({x(row) for each in series for row in each.rows})
    for each in series:
        points = [(x(row), y(row)) for row in each.rows]
        kind = each.subject.kind
        lines.append(Line(points, kind))
        for n, (place, value) in enumerate(points):
            tooltip = f"{each.name}, {place:,.0f} {x_name}: {told(value)}"
            end = each.letter + SHORT[each.arrangement] if n == len(points) - 1 else ""
            square = each.arrangement != "replicas"
            marks.append(Mark(place, value, f"mark {kind}", tooltip, end, radius=3.5, square=square))
        by_place = dict(points)
        rows.append([each.name, *(told(by_place[place]) if place in by_place else "" for place in places)])
    table = Table(label, ["model", *(f"{place:,.0f} {x_name}" for place in places)], rows)
    values = [y(row) for each in series for row in each.rows]
    return Chart(
        label, Axis.around(x_name, places, 1.4), axis or Axis.around(y_name, values, 1.4), lines, marks,
        keys(study), table,
    )  # fmt: skip


def keys(study: Study) -> list[Key]:
    present = {subject.kind for subject in study.subjects}
    shapes = [Key("mark near", "replicas"), Key("mark near", "experts apart", "square")]
    kinds = [Key(f"mark {kind}", label) for kind, label in KINDS.items() if kind in present]
    return kinds + (shapes if any(subject.layers for subject in study.subjects) else [])
