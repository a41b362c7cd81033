"""Studies of what papers claim of mixtures of experts and fast feedforward trees: one command each.

    lapinfer study table1 MNIST -o results

A study is many small trainings (trials), which run side by side with one thread each. A trial's result is written as
soon as it is there: a study that was stopped goes on with what is left. docs/studies.md says what was found.
"""

from __future__ import annotations

from importlib import import_module

from lapinfer.errors import InputError
from lapinfer.train.studies.study import Setting, Study, run_study

STUDIES: tuple[str, ...] = ("collapse", "table3", "step_time")
"""Modules of this package, each with a STUDY."""


def find_study(name: str) -> Study:
    """The study of a name; InputError says which there are."""
    if name not in STUDIES:
        raise InputError(f"{name}: no such study; expected {', '.join(STUDIES)}")
    return import_module(f"lapinfer.train.studies.{name}").STUDY


__all__ = ["STUDIES", "Setting", "Study", "find_study", "run_study"]
