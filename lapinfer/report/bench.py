"""Speed of prompt processing and generation by llama-bench's two tests, with its names.

pp512: the tokens of a prompt of 512, as large steps as the model takes. tg128: 128 tokens, one per step, from
an empty context. "@ d1024" after either: at a depth of 1024 tokens, whose reading is not timed. Nothing is
sampled, but logits are those that generation asks for by default: of a head with a coarse copy, the best. "tg128
x4": 128 tokens of four sequences each, a step for the next of all, with different texts. "tg128 copied": the 128
tokens before it again, with speculation: the most that it brings. The first run of each test warms up and is not
counted; compile and load times have their own columns. Models take turns, a run each (report/turns.py), and so do
numbers of sequences within a model's turn. The machine's bandwidth is measured between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.shipped import card_figures
from lapinfer.errors import DoesNotFitError, InputError, LapinferError
from lapinfer.machine import available_memory
from lapinfer.options import LoadOptions
from lapinfer.progress import Count, Progress, silent
from lapinfer.report import roofline
from lapinfer.report.bench_copied import Copied
from lapinfer.report.bench_runs import About, Row, Runs
from lapinfer.report.candidates import Candidate
from lapinfer.report.perplexity import perplexity
from lapinfer.report.texts import passage, sample_ids
from lapinfer.report.turns import Loaded, take_turns
from lapinfer.text.language_model import LanguageModel
from lapinfer.texts import read_text

ROOFLINE_S = 0.2
"""Seconds for each figure of the machine."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A model of several that could not be measured."""

    model: str
    error: LapinferError | OSError | MemoryError


@dataclass(frozen=True, slots=True)
class Tests:
    """What is measured of a model: each length of a prompt, and of so many answers together, at each depth.

    copied: answers that repeat what is before them, too, with speculation.
    """

    n_prompt: Sequence[int] = (512,)
    n_gen: Sequence[int] = (128,)
    depth: Sequence[int] = (0,)
    sequences: Sequence[int] = (1,)
    repetitions: int = 5
    text: Path | None = None
    copied: bool = False

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise InputError(f"repetitions: expected a number from 1, got {self.repetitions}")
        if not self.lengths:
            raise InputError("nothing to measure: -p and -n are both 0")
        if min(self.sequences) < 1:
            raise InputError(f"--batch: expected numbers of sequences from 1, got {min(self.sequences)}")
        if self.slots > 1 and not any(self.n_gen):
            raise InputError("--batch: sequences are decoded together, and -n is 0")
        if self.text is not None and not self.text.is_file():
            raise InputError(f"{self.text}: no such file; expected a text to measure perplexity on")

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(tokens of a prompt, or 0; tokens to generate, or 0)."""
        return [(p, 0) for p in self.n_prompt if p] + [(0, n) for n in self.n_gen if n]

    def sizes(self, n_gen: int) -> Sequence[int]:
        """Numbers of sequences that a test of so many generated tokens is taken with."""
        return [*dict.fromkeys(self.sequences)] if n_gen else [1]

    @property
    def runs(self) -> int:
        """Of one model."""
        tests = sum(len(self.sizes(n)) + (self.copied and n > 0) for _, n in self.lengths)
        return tests * len(self.depth) * (self.repetitions + 1)

    @property
    def ctx(self) -> int:
        longest = max(map(sum, self.lengths))
        return max(longest, 2 * max(self.n_gen, default=0) if self.copied else 0) + max(self.depth)

    @property
    def slots(self) -> int:
        return max(self.sequences)


def bench(
    candidates: Sequence[Candidate], options: LoadOptions, tests: Tests, threads: Sequence[int | None] = (None,),
    progress: Progress = silent,
) -> Iterator[tuple[int, Row | Failure]]:  # fmt: skip
    """A row for each combination as soon as it is measured, with the place of its model and threads among all.

    A model that fails does not keep others from theirs.
    """
    grid = list(itertools.product(candidates, threads))
    count = Count(progress, "measuring", tests.runs * len(grid), "runs")
    sides = [
        partial(_turns, candidate, replace(options, threads=n, ctx=tests.ctx, slots=tests.slots), tests, count)
        for candidate, n in grid
    ]
    # A bound of memory is the process's: one model at a time may use it.
    groups = [range(len(sides))] if options.memory is None else [range(i, i + 1) for i in range(len(sides))]
    failed: set[Candidate] = set()
    for group in groups:
        for turn in take_turns([sides[i] for i in group], available_memory(), progress):
            place = group[turn.side]
            candidate = grid[place][0]
            if isinstance(turn.value, Row):
                yield place, replace(turn.value, paired=turn.paired)
            elif turn.value is not None and candidate not in failed:
                failed.add(candidate)
                yield place, Failure(str(candidate), turn.value)


def _turns(
    candidate: Candidate, options: LoadOptions, tests: Tests, count: Count
) -> Generator[Loaded | Row | None, None, None]:
    """A row at the end of each test, and nothing after the turns before."""
    with candidate.open(options, count.progress) as loaded:
        model = loaded.model
        if tests.slots > model.max_step:
            raise DoesNotFitError(
                f"{model.name}: --memory leaves room for the experts of {model.max_step} tokens in a step, and "
                f"{tests.slots} sequences were asked for; allow more, or try a smaller --batch"
            )
        yield Loaded.of(model)
        ids, text = sample_ids(loaded.tokenizer, model.spec.vocab, passage())
        starts = np.arange(tests.slots) * (len(ids) // tests.slots)
        texts = np.stack([np.resize(np.roll(ids, -start), tests.ctx) for start in starts])
        count.progress(f"{model.name}: measuring this machine")
        machine = roofline.measure(model.threads, seconds=ROOFLINE_S)
        about = About(machine, text, *_perplexity(loaded, tests.text, count.progress))
        for (p, n), d in itertools.product(tests.lengths, tests.depth):
            runs = [Runs(model, texts[:size], p, n, d) for size in tests.sizes(n)]
            if n and tests.copied:
                runs.append(Copied(model, texts[0], n, d))
            yield from _rounds(runs, tests.repetitions, count)
            alone = next((run for run in runs if len(run.texts) == 1 and not isinstance(run, Copied)), None)
            for run in runs:
                yield run.row(about, alone)


def _perplexity(loaded: LanguageModel, text: Path | None, progress: Progress) -> tuple[float | None, str | None]:
    """Of a text, and its name; without one, what the card of a shipped model says."""
    if text is not None:
        ctx = min(loaded.model.ctx, loaded.spec.context)
        *_, result = perplexity(loaded, read_text(text), ctx, progress=progress)
        return result.ppl, text.name
    if (card := card_figures(loaded.model.name)) is None:
        return None, None
    return card["perplexity"], f"{card['text']} (from the card)"


def _rounds(runs: Sequence[Runs], repetitions: int, count: Count) -> Iterator[None]:
    """All of a round before the next, every other one backwards; nothing after each but the last. One warms up."""
    for repetition in range(repetitions + 1):
        if repetition:
            yield None
        for run in runs[:: -1 if repetition % 2 else 1]:
            count(f"{run.model.name} {run.name}")
            with run.model.lock:
                run.once(counted=repetition > 0)
    count.end()
