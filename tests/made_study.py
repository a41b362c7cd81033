"""A study of models that were never run: sizes as their specs say, steps foreseen for a machine that there is not."""

from __future__ import annotations

from lapinfer.report.costs import Costs
from lapinfer.report.random_weights import shape_formats
from lapinfer.report.shapes import shape_spec
from lapinfer.scale.foresee import Speeds, foreseen_times, subject
from lapinfer.scale.network import network
from lapinfer.scale.simulate import Load
from lapinfer.scale.study import Options, Study, rows
from lapinfer.scale.subject import Subject
from lapinfer.scale.tape import drawn

LOAD = Load(32, 32)
SPEEDS = Speeds(2e10, 1e11)


def made_subject(kind: str, name: str = "") -> Subject:
    spec = shape_spec("100m", kind)
    costs = Costs(spec, shape_formats(spec, "q4"))
    return subject(name or f"100m-{kind}", costs, foreseen_times(costs, SPEEDS), drawn(spec, 0.5), LOAD, "foreseen")


def made_study(*kinds: str, name: str = "", **options) -> Study:
    """name: of the last model."""
    given = {"nodes": (1, 2, 4), "batches": (1, 16, 64), "network": network("100gbe"), "load": LOAD} | options
    chosen = Options(**given)
    subjects = (*map(made_subject, kinds[:-1]), made_subject(kinds[-1], name))
    return Study(subjects, chosen, rows(subjects, chosen), {"cpu": "a processor"}, "2026-01-01 00:00 UTC")
