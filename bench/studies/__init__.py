"""Studies of what papers claim of mixtures of experts and fast feedforward trees: one command each, from a checkout.

    python -m bench.studies table1 MNIST -o results

A study is many small trainings (trials), which run side by side with one thread each. A trial's result is written as
soon as it is there: a study that was stopped goes on with what is left. docs/studies.md says what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STUDIES: Final[Mapping[str, tuple[str, str]]] = {
    "siblings": ("Dense, experts and trees in language models of one size", "TEXT... LAST_TEXT"),
    "table1": ("Table 1 of arXiv 2308.14711 on MNIST", "MNIST"),
    "table2": ("Table 2 of arXiv 2308.14711, its shape on MNIST", "MNIST"),
    "table3": ("Fast feedforward trees in a vision transformer", "MNIST_OR_CIFAR10"),
    "collapse": ("Noise and penalties against the collapse of experts", "TEXT..."),
    "step_time": ("A training step with dense, mixture and tree feed-forwards", "TEXT..."),
}
"""(title, data) of each module of this package that has a STUDY. It stands here, so that --help needs no PyTorch."""
