"""How many neurons fast feedforward layers have, and how many they compute (arXiv 2308.14711, section 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of neurons. Widths count leaves alone, sizes nodes too; training uses all of them, inference one path."""

    depth: int
    leaf: int
    training_width: int
    training_size: int
    inference_width: int
    inference_size: int


def fff_sizes(depth: int, leaf: int, node_width: int = 1, trees: int = 1) -> Sizes:
    """Sizes of trees of a depth, with leaves of `leaf` neurons and nodes of `node_width`."""
    leaves, nodes = trees << depth, trees * ((1 << depth) - 1)
    return Sizes(
        depth, leaf, leaves * leaf, leaves * leaf + nodes * node_width, trees * leaf,
        trees * (depth * node_width + leaf),
    )  # fmt: skip


def table_3(width: int = 128) -> list[Sizes]:
    """The layers of the paper's table 3: leaves of 32, 16, … 1 neurons, together `width` neurons."""
    return [fff_sizes(depth, width >> depth) for depth in range(2, width.bit_length())]


def size_table(width: int = 128) -> str:
    """The size columns of table 3 as text; `at most`: a dense layer's neurons divided by those that are computed."""
    rows = [("model", "depth", "training size", "inference width", "inference size", "at most")]
    rows.append((f"FF {width}", "–", str(width), str(width), str(width), "1.0×"))
    for s in table_3(width):
        bound = f"{width / s.inference_size:.1f}×"
        rows.append((f"FFF {s.leaf}", str(s.depth), str(s.training_size), str(s.inference_width), str(s.inference_size),
                     bound))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
