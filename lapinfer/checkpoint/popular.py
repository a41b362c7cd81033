"""Sizes of models that many people ask for (popular.toml), so that what they take is told without a file of theirs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("popular.toml")
NULL = "none"
"""What the table has for JSON's null, which TOML lacks."""


@dataclass(frozen=True, slots=True)
class Popular:
    """A model of the table. billions: of parameters, as its publisher tells; note: what is to be known of its files."""

    name: str
    config: dict[str, Any]
    billions: float
    note: str | None = None


def popular_names() -> list[str]:
    """org/name of all models of the table, in its order."""
    return [model.name for model in _table().values()]


def popular(name: str) -> Popular | None:
    """The model that people mean by a name: org/name, or the name alone, however its letters are written."""
    return _table().get(name.lower()) or _by_bare_name().get(name.lower())


def like(name: str, most: int = 3) -> list[str]:
    """Names of the table that a name may have been meant for, the likeliest first."""
    known = _table() if "/" in name else _by_bare_name()
    return [known[key].name for key in difflib.get_close_matches(name.lower(), known, most)]


@cache
def _table() -> dict[str, Popular]:
    import tomllib

    with TABLE.open("rb") as file:
        return {model.name.lower(): model for group in tomllib.load(file)["group"] for model in _models(group)}


@cache
def _by_bare_name() -> dict[str, Popular]:
    return {key.partition("/")[2]: model for key, model in _table().items()}


def _models(group: dict[str, Any]) -> Iterator[Popular]:
    same = {"model_type": group["model_type"], **group.get("same", {})}
    found: dict[str, Popular] = {}
    for name, numbers in group["models"].items():
        said = same | dict(zip(group["keys"], numbers, strict=True))
        billions = said.pop("billions")
        config = {key: None if value == NULL else value for key, value in said.items()}
        found[name] = Popular(name, config, billions, group.get("note"))
    yield from found.values()
    for name, of in group.get("also", {}).items():
        yield Popular(name, found[of].config, found[of].billions, found[of].note)
