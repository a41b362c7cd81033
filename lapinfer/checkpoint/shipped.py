"""The small models that come with the package (weights/README.md): they run without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from lapinfer.errors import InputError

SHIPPED: Final = ("austen-dense", "austen-dense-active", "austen-moe", "austen-fff")
"""Siblings that differ in their feed-forwards: dense, dense of what a token computes in the others, experts, trees."""

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_model(name: str) -> Path | None:
    """The folder of a shipped model: in the package, or beside it in a checkout."""
    if name not in SHIPPED:
        return None
    for weights in (_PACKAGE / "weights", _PACKAGE.parent / "weights"):
        if (weights / name / "config.json").is_file():
            return weights / name
    return None


def installed_models() -> list[str]:
    """Names of the shipped models; InputError when this installation has none of them."""
    if names := [name for name in SHIPPED if shipped_model(name) is not None]:
        return names
    raise InputError(
        f"no models are named, and those that come with the package ({', '.join(SHIPPED)}) are not there; name some"
    )


def card_figures(name: str) -> dict[str, Any] | None:
    """perplexity of a whole `text` that the models were not trained on, the `quant` that it was measured with, and the
    `sha256` of the weights' file."""
    if (folder := shipped_model(name)) is None:
        return None
    return json.loads((folder / "figures.json").read_text(encoding="utf-8"))
