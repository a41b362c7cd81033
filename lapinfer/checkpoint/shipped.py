"""The small models that come with the package (weights/README.md): they run without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

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


def card_figures(name: str) -> dict[str, Any] | None:
    """perplexity of a whole `text` that the models were not trained on, and the `quant` that it was measured with."""
    if (folder := shipped_model(name)) is None:
        return None
    return json.loads((folder / "figures.json").read_text(encoding="utf-8"))
