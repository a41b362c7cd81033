"""How many different experts tokens would touch if they chose independently, to compare measured numbers with."""

from __future__ import annotations

from typing import Any

import numpy as np


def expected_distinct(experts: int, top_k: int, batch: Any) -> np.ndarray:
    """Expected number of distinct experts that `batch` (a number or array) tokens touch: E · (1 − (1 − k/E)^B).

    For independent tokens, each of which gets any k of E experts with equal chance.
    """
    return experts * (1 - (1 - top_k / experts) ** np.asarray(batch, np.float64))


def expected_distinct_by_load(load: np.ndarray, top_k: int, batch: Any) -> np.ndarray:
    """The same for experts of unequal load: Σ 1 − (1 − p_e)^B, where a token gets expert e with probability p_e.

    load [E]: tokens that each expert got, of load.sum() / k tokens; p_e = load_e · k / load.sum(). Unequal loads bring
    it below `expected_distinct`. That neighbouring tokens of a text resemble each other is not in it.
    """
    p = np.minimum(load * (top_k / max(float(load.sum()), 1.0)), 1.0)
    return (1 - (1 - p) ** np.asarray(batch, np.float64)[..., None]).sum(axis=-1)


def expected_means(arrays: dict[str, np.ndarray], batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means over the layers of `Routing.arrays()`: (expected_distinct, expected_distinct_by_load)."""
    layers = list(zip(arrays["experts"].tolist(), arrays["top_k"].tolist(), arrays["tokens_routed"], strict=True))
    uniform = [expected_distinct(experts, top_k, batch) for experts, top_k, _ in layers]
    by_load = [expected_distinct_by_load(load, top_k, batch) for _, top_k, load in layers]
    return np.mean(uniform, axis=0), np.mean(by_load, axis=0)
