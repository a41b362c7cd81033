"""Models to be measured: those that are named, and random ones of a size; each is opened as often as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lapinfer.checkpoint.shipped import installed_models
from lapinfer.errors import InputError
from lapinfer.machine import default_threads
from lapinfer.options import LoadOptions
from lapinfer.report.random_weights import shape_model
from lapinfer.report.sizes import KINDS, SIZES
from lapinfer.runtime.ops import Limits
from lapinfer.text.language_model import LanguageModel, open_model


@dataclass(frozen=True, slots=True)
class Candidate:
    """name: of a model, or of a size; kind: of the random model of that size, else None."""

    name: str
    kind: str | None = None

    def __str__(self) -> str:
        return self.name if self.kind is None else f"{self.name}-{self.kind}"

    def open(self, options: LoadOptions, progress: Callable[..., Any] | None = None) -> LanguageModel:
        """Of a random model, only quant, threads, ctx and slots count, and ctx must be given."""
        if self.kind is None:
            return open_model(self.name, options, progress)
        ctx, slots = options.ctx or 1, options.slots
        limits = Limits(ctx, slots, threads=options.threads or default_threads(), wanted=slots)
        limits = replace(limits, step=max(min(limits.step, ctx), slots))  # a longer step would never be filled
        return LanguageModel(shape_model(self.name, self.kind, options.quant, limits))


def candidates(names: Sequence[str], sizes: Sequence[str] = ()) -> list[Candidate]:
    """Those named, each once, then the four random ones of each size; without any, the shipped models."""
    for size in sizes:
        if size not in SIZES:
            raise InputError(f"--shapes {size}: no such size; expected {', '.join(SIZES)}")
    if not names and not sizes:
        names = installed_models()
    return [*map(Candidate, dict.fromkeys(names)), *(Candidate(size, kind) for size in sizes for kind in KINDS)]
