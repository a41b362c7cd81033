"""Families: parity with transformers through the oracle, golden logits, refusals, hostile config files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny

from lapinfer.families import spec_from_config

TYPICAL, BOUND = 1e-5, 1e-4
"""max|Δ logit| / max|logit| in float32: what the order of sums explains, and what a wrong formula exceeds."""


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("case", tiny.CASES, ids=str)
def test_oracle_agrees_with_transformers(case: tiny.Case, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder, ids, expected = tiny.make(case, tmp_path)
    spec = spec_from_config(read_config(folder), "config.json")
    logits = reference.forward(spec, reference.load_weights(folder, spec), ids)
    assert distance(logits, expected) <= BOUND
