"""The models of weights/: found by name, run without a network, and what PyTorch says that they are."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapinfer.checkpoint import hub
from lapinfer.checkpoint.shipped import SHIPPED, shipped_model
from lapinfer.loading import load_model
from lapinfer.options import LoadOptions
from lapinfer.runtime.predict import predict_bytes
from lapinfer.tensors import tensors
from lapinfer.text.language_model import load

ROOT = Path(__file__).parent.parent
GOLDEN = json.loads((Path(__file__).parent / "golden_siblings.json").read_text(encoding="utf-8"))
CLEAR = {"f32": 0.02, "q8": 0.5}
"""By how much a logit must lead in PyTorch for its token to be the best here, too: far more than float32 sums in
another order can differ, and what int8 weights and activations move logits by."""


@pytest.mark.parametrize("name", SHIPPED)
def test_has_a_name_a_card_and_a_small_file(name):
    folder = shipped_model(name)
    assert folder is not None
    assert hub.is_local(name)
    assert (folder / "model.safetensors").stat().st_size < 8e6
    assert "perplexity" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("quant", CLEAR)
@pytest.mark.parametrize("name", SHIPPED)
def test_golden_tokens(name, quant):
    golden = GOLDEN["models"][name]
    ids, begun = golden["prompt_ids"] + golden["ids"], len(golden["prompt_ids"])
    with load(name, quant=quant, ctx=128) as model:
        assert model.tokenizer is not None
        assert list(model.tokenizer.encode(GOLDEN["prompt"])) == golden["prompt_ids"]
        n = len(ids)
        position = np.arange(n)
        wanted = (begun - 1 <= position) & (position < n - 1)
        logits = model.model.step(ids, [0] * n, position, wanted).values.copy()
    best = logits.argmax(axis=1)
    clear = np.array(golden["margins"]) > CLEAR[quant]
    assert clear.sum() > len(clear) / 3
    np.testing.assert_array_equal(best[clear], np.array(golden["ids"])[clear])


def test_runs_without_a_network_and_without_a_name(tmp_path):
    environment = os.environ | {
        "LAPINFER_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    command = [sys.executable, "-m", "lapinfer", "run", "--temp", "0", "-n", "24", GOLDEN["prompt"]]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert len(words) > 10
    assert "austen-fff" in done.stderr


@pytest.mark.parametrize("quant", ["q4", "q8", "f16"])
@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=15, deadline=None)
@given(kv=st.sampled_from(["f16", "q8"]), batch=st.integers(1, 3), prompt=st.integers(1, 40), seed=st.integers(0, 99))
def test_predicted_bytes_are_metered_ones(name, quant, kv, batch, prompt, seed):
    model = loaded(name, quant, kv)
    formats = {n: str(model.weights.format(n)) for n, t in tensors(model.spec).items() if t.is_matrix}
    rng = np.random.default_rng(seed)
    for slot in range(batch):  # a prompt each, then a token of all of them
        check_step(model, formats, kv, rng.integers(0, 2048, prompt), [slot] * prompt, range(prompt))
    check_step(model, formats, kv, rng.integers(0, 2048, batch), range(batch), [prompt] * batch)


@cache
def loaded(name, quant, kv):
    return load_model(name, LoadOptions(quant=quant, kv=kv, ctx=64, slots=3, threads=2))


def check_step(model, formats, kv, ids, slots, positions):
    """Runs a step; what it metered is what is predicted from the spec and from the experts that were chosen."""
    model.usage.reset()
    slots, positions = list(slots), list(positions)
    model.step(ids, slots, positions, [True] * len(ids))
    predicted = predict_bytes(
        model.spec, formats, kv, slots, positions, len(ids), model.distinct_experts, model.distinct_nodes
    )
    assert model.usage.totals()["bytes"] == sum(predicted.values())
