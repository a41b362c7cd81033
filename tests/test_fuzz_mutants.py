"""A few mutants of every kind of file, which `python bench/fuzz.py` makes by the ten thousand."""

import pytest

from bench.fuzzing.child import outcome_of
from bench.fuzzing.subjects import SHARES, SUBJECTS

MUTANTS = {"safetensors": 20, "config": 20, "packed": 12, "gguf": 30, "tokenizer": 40}
OTHERS = 40


def test_shares_are_of_all_kinds():
    assert list(SHARES) == list(SUBJECTS)
    assert sum(SHARES.values()) == 50_000


@pytest.mark.parametrize("kind", [kind for kind in SUBJECTS if kind not in ("packed", "safetensors", "config")])
def test_mutants_are_refused_or_run(tmp_path, monkeypatch, kind):
    if kind == "gguf":
        pytest.importorskip("gguf")
    monkeypatch.setenv("LAPINFER_HOME", str(tmp_path / "home"))
    outcomes = [outcome_of(kind, tmp_path / str(i), 0, i) for i in range(MUTANTS.get(kind, OTHERS))]
    assert not [(i, detail) for i, (outcome, detail) in enumerate(outcomes) if outcome == "wrong"]
    assert len({outcome for outcome, _ in outcomes}) > 1
