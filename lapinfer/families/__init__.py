"""Model families: one file each, which reads a config.json into a ModelSpec and names the tensors.

A family module has

    spec(config) -> ModelSpec                           refuses what it would run wrongly (UnsupportedError)
    sources(spec) -> dict[str, tuple[Source, ...]]      our tensor name -> where its rows come from

`Source` is the whole language between a checkpoint's names and ours: rows of a stored tensor, maybe transposed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """Rows start:stop (all, when stop is None) of a stored tensor; `transposed` when it is stored [in, out]."""

    name: str
    start: int = 0
    stop: int | None = None
    transposed: bool = False
