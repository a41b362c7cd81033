"""Which format a matrix gets: what is asked for, changed by what it is, how it is stored and how large its model is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from lapinfer.quant.format import Format, ModelSize
from lapinfer.quant.formats import FORMATS
from lapinfer.quant.groups import FeedbackFormat

AUTO: Final = "auto"

SMALL: Final = 400_000_000
"""Models of fewer weights are small: they are fast anyway, and 4 bits cost them more."""

ROUTERS: Final = tuple(name for name, form in FORMATS.items() if form.for_routers)
"""Formats of routers and nodes, the first for those that are stored in any other way."""

MODELS: Final = {form.models: name for name, form in FORMATS.items() if form.models}
"""Size of model -> what `--quant auto` packs it as."""

HEADS: Final = {form.heads: name for name, form in FORMATS.items() if form.heads}
"""Size of model -> what embedding and head become where their model's own format is too coarse."""

FED_BACK: Final = tuple(name for name, form in FORMATS.items() if isinstance(form, FeedbackFormat))
"""Formats that a calibration text is for."""

Stored = AbstractSet[str | None]
"""The formats that the parts of a matrix are stored in; None: something else."""


def model_size(weights: int) -> ModelSize:
    """What kind of model one of so many weights is."""
    return "small" if weights < SMALL else "large"


def matrix_format(quant: str, stored: Stored, size: ModelSize, *, head: bool = False) -> str:
    """The format of a matrix that is no router. head: whether it is the embedding or the head of its model."""
    kept = _kept(stored) if quant == AUTO else None
    name = kept or (MODELS[size] if quant == AUTO else quant)
    if head:
        return head_format(name, stored, size)
    variant = FORMATS[name].exact_variant
    return variant if variant is not None and variant in stored else name


def head_format(name: str, stored: Stored, size: ModelSize) -> str:
    """The format of embedding and head where other matrices have the format `name`."""
    if not FORMATS[name].finer_head:
        return name
    return HEADS["small"] if stored == {HEADS["small"]} else HEADS[size]


def router_format(stored: Stored) -> str:
    """The format of a router: that which it is stored in, if routers may be so."""
    return next((name for name in ROUTERS if stored == {name}), ROUTERS[0])


def narrow_format(name: str) -> str:
    """What a format becomes where matrices are stored row by row."""
    return FORMATS[name].narrow or name


def _kept(stored: Stored) -> str | None:
    """The most exact of the formats that a matrix is stored in, if all are kept by `auto`."""
    formats: list[Format] = [FORMATS[name] for name in stored if name is not None]
    if len(formats) < len(stored) or not formats or not all(form.kept_by_auto for form in formats):
        return None
    return max(formats, key=lambda form: form.bits).name
