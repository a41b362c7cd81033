"""How figures look: a row or grid of panels, written as an SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure in inches, and its panels in an array of rows (flat, if there is one)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
        "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "lapinfer",
    }  # fmt: skip
    matplotlib.rcParams.update(style)
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained")


def save(fig: Any, path: Path) -> None:
    """Write a figure, the same bytes for the same figures."""
    from matplotlib import pyplot

    fig.savefig(path, metadata={"Date": None})
    pyplot.close(fig)
