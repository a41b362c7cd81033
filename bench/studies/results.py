"""What summaries of studies are made of: statistics, loads of experts, times taken in turns, tables and figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lapinfer.train.routed import max_over_mean


def mean_and_sd(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and standard deviation of a sample (0 for one value)."""
    sample = list(values)
    return statistics.fmean(sample), statistics.stdev(sample) if len(sample) > 1 else 0.0


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median, the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def interleaved(seconds: Mapping[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """What each function returns in `rounds` rounds, after `warm_up` that are not counted.

    The functions take turns, A B C A B C: whatever else the machine does meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(warm_up + rounds):
        for name, function in seconds.items():
            value = function()
            if turn >= warm_up:
                times[name].append(value)
    return times


def described_load(load: Tensor, top_k: int, entropy: float) -> dict[str, Any]:
    """Figures of the tokens per expert [E], of which each token has `top_k`; entropy: of the router's probabilities.

    share: of the tokens that the busiest expert gets. effective: exp of the entropy of the loads, E when they are even.
    """
    p = load / load.sum()
    return {
        "load": [int(n) for n in load], "share": float(top_k * p.max()), "max_load": max_over_mean(load),
        "effective": float(torch.exp(-torch.xlogy(p, p).sum())), "dead": int((load == 0).sum()), "entropy": entropy,
    }  # fmt: skip


# ---- text ----


def plus_minus(mean_sd: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """A (mean, deviation) as `mean ± deviation`."""
    mean, sd = mean_sd
    return f"{scale * mean:.{digits}f} ± {scale * sd:.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- figures ----

STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "legend.fontsize": 8, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "lapinfer",
}  # fmt: skip


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure in inches, and its panels [rows, columns]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(STYLE)
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def save(fig: Any, path: Path) -> None:
    """Write a figure as SVG, the same bytes for the same figures."""
    from matplotlib import pyplot

    fig.savefig(path, metadata={"Date": None})
    pyplot.close(fig)


def width_axis(ax: Any, widths: Iterable[int]) -> None:
    """Training widths, which are powers of 2, along x."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(widths)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("training width")
