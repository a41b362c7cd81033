"""All weight formats: each module here has one, FORMAT, and is named like it."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from lapinfer.quant.format import Format
from lapinfer.quant.groups import GroupFormat
from lapinfer.quant.names import format_names


def _load() -> dict[str, Format]:
    formats: list[Format] = [import_module(f"{__name__}.{name}").FORMAT for name in format_names()]
    assert [form.name for form in formats] == format_names(), "a format is named like its file"
    ids = [form.id for form in formats]
    twice = [f"{form.name} {form.id}" for form in formats if ids.count(form.id) > 1]
    assert not twice, f"ids of formats are unique: {', '.join(twice)}; the next free one is {max(ids) + 1}"
    return {form.name: form for form in sorted(formats, key=lambda form: form.id)}


FORMATS: Final = _load()
"""By name, in the order of their ids."""

STORED: Final = {kind: form for form in FORMATS.values() for kind in form.stored_types}
"""Type in a checkpoint -> the format that holds it without a loss."""

KEPT: Final = STORED | {kind: form for form in FORMATS.values() for kind in form.nearest_types}
"""The same, with types that lose least in a format: what they become unless another one is asked for."""


def group_format(name: str) -> GroupFormat:
    """A format that must have groups."""
    form = FORMATS[name]
    if not isinstance(form, GroupFormat):
        raise ValueError(f"{name} has no groups")
    return form
