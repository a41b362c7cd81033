"""How many neurons fast feedforward layers have, and compute (arXiv 2308.14711, section 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Neurons. Widths are those of leaves alone, sizes with the nodes'; training has all of them, inference a path."""

    depth: int
    leaf: int
    training_width: int
    training_size: int
    inference_width: int
    inference_size: int


def fff_sizes(depth: int, leaf: int, node_width: int = 1, trees: int = 1) -> Sizes:
    """Of trees of a depth with leaves of `leaf` neurons and nodes of `node_width`."""
    leaves, nodes = trees << depth, trees * ((1 << depth) - 1)
    return Sizes(
        depth, leaf, leaves * leaf, leaves * leaf + nodes * node_width, trees * leaf,
        trees * (depth * node_width + leaf),
    )  # fmt: skip


def table_3(width: int = 128) -> list[Sizes]:
    """The layers of the paper's table 3: leaves of 32, 16, … 1 neurons, of `width` together."""
    return [fff_sizes(depth, width >> depth) for depth in range(2, width.bit_length())]
