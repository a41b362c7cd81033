"""How long the engine's layers take for batches of real activations, several models turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lapinfer.layers import Layer


def layer_times(
    models: Mapping[str, Sequence[tuple[Layer, np.ndarray]]], tokens: int, rounds: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds that the layers of each model take together for `tokens` tokens, once a round: [rounds] by model.

    Each layer comes with its inputs, float32 [N, D], of which a round takes the next `tokens`: a processor that has
    seen the same decisions before would guess them. The time is that of the layer's plan, without the call from Python.
    Models take turns, so that whatever else the machine does meets all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, pairs in models.items():
            total = 0
            for layer, x in pairs:
                batches = len(x) // tokens
                assert batches, "fewer inputs than tokens"
                at = turn % batches * tokens
                layer.plan  # noqa: B018 - compiles
                before = layer.meter.ns
                layer(x[at : at + tokens])
                total += layer.meter.ns - before
            if turn:  # the first is a warm-up
                found[name].append(total / 1e9)
    return found
