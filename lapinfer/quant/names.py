"""The names of all formats, known without importing them, or NumPy."""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules


def format_names() -> list[str]:
    """The files in lapinfer/quant/formats, sorted."""
    return sorted(module.name for module in iter_modules([str(Path(__file__).parent / "formats")]))
