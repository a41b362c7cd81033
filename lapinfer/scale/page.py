"""The page of a study: one HTML file in the report's manner, made from a `Study` alone."""

from __future__ import annotations

from lapinfer import __version__
from lapinfer.report.document import Part, Section, document
from lapinfer.report.pieces import details, figure, items, meanings, table
from lapinfer.scale.charts import cost_chart, memory_chart, speed_chart, waiting_chart
from lapinfer.scale.study import Study
from lapinfer.scale.tables import crossings_table, rows_table
from lapinfer.scale.words import found, notes
from lapinfer.shown import escape

WORDS = (
    ("node", "A machine of its own, with one engine; on the network `local`, a process."),
    ("sequences", "Answers that are written at once, on all nodes together."),
    ("replicas", "Each node has the whole model, and its share of the sequences. Nodes do not talk to each other."),
    ("one home", "Experts apart: one node has all sequences, attention and routers; the others share the experts."),
    ("all homes", "Experts apart: each node has a share of the sequences, all attention and routers, and a share of "
     "the experts."),
    ("waiting", "The share of the nodes' time in which they compute nothing, but wait for messages or for each other."),
    ("expert batch", "Tokens for which an expert is read once. Experts apart see the tokens of all homes."),
)  # fmt: skip


def page(study: Study) -> str:
    """The whole file."""
    options = study.options
    introduction = (
        f"{max(options.nodes)} nodes at most, network {escape(options.network.name)}, "
        f"{min(options.batches):,} to {max(options.batches):,} sequences; {escape(study.created)},\n"
        f"steps of {escape(str(study.machine.get('cpu', '')))}, lapinfer {__version__}"
    )
    parts: list[Part] = [
        Section("found", "What was found", "", items("answers", found(study))),
        (
            Section("cost", "What a million tokens cost", "Simulated. Below is better. Replicas cost the same on any "
                    "number of nodes, as long as each has sequences enough.", figure(cost_chart(study))),
            Section("speed", "Tokens per second", "Simulated. Where sequences are few, their number is what limits all "
                    "arrangements; where they are many, arithmetic is.", figure(speed_chart(study))),
        ),
        *_apart(study),
        Section("memory", "What a node must hold", "Weights, the caches of its sequences, and the process. Experts "
                "apart are for models whose replica is too large for a node.", figure(memory_chart(study))),
        Section("figures", "All figures", "", details("Every row", table(rows_table(study)))),
        Section("words", "Words", "", meanings(WORDS)),
        Section("method", "How it came about", "", items("notes", notes(study))),
    ]  # fmt: skip
    return document(_title(study), introduction, parts)


def _title(study: Study) -> str:
    names = [subject.name for subject in study.subjects]
    return f"What {names[0]} would cost at scale" if len(names) == 1 else "What these models would cost at scale"


def _apart(study: Study) -> list[Part]:
    waiting, crossed = waiting_chart(study), crossings_table(study)
    if waiting is None:
        return []
    return [
        Section("crossings", "Where experts apart begin to pay", "The fewest sequences from which on they give more "
                "tokens per second than as many replicas, and the most that they bring.", table(crossed)),
        Section("waiting", "What nodes wait for", "Simulated. In each layer a home waits for the slowest node, and "
                "nodes wait for all homes.", figure(waiting)),
    ]  # fmt: skip
