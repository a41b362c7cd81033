"""A token's experts are what is read, and no others: predicted bytes are the metered ones, and all other experts may
be taken out of memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import RandomWeights
from test_determinism import parallel_decoder, recurrent_decoder, tree_decoder

from lapinfer.families import spec_from_config
from lapinfer.model import Model
from lapinfer.quant.formats import FORMATS
from lapinfer.runtime.kv import DTYPES
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.predict import predict_bytes
from lapinfer.spec import ModelSpec
from lapinfer.tensors import tensors

CASES = [*(str(case) for case in tiny.CASES if case.routed), "trees", "parallel", "recurrences"]
SLOTS, CTX, STEP = 3, 48, 24


@cache
def spec_of(name: str) -> ModelSpec:
    if name == "trees":
        return tree_decoder()
    if name == "parallel":
        return parallel_decoder()
    if name == "recurrences":
        return recurrent_decoder()
    return spec_from_config(tiny.read_golden(tiny.GOLDEN / f"{name}.npz")[0], name)


@cache
def model_of(name: str, fmt: str, kv: Any) -> tuple[Model, dict[str, str]]:
    """A golden case's model with random weights, and the formats of its matrices; `mixed`: of every kind."""
    spec = spec_of(name)
    matrices = {n: t for n, t in tensors(spec).items() if t.is_matrix}
    rng = np.random.default_rng(len(name))
    mixed = dict(zip(matrices, rng.choice(sorted(FORMATS), len(matrices)).tolist(), strict=True))
    mixed |= {n: "bf16" for n, t in matrices.items() if t.role == "router"}
    mixed |= {n: mixed[n.replace("outward", "inward")] for n in matrices if n.endswith("outward")}
    weights = RandomWeights(spec, fmt, formats=mixed) if fmt == "mixed" else RandomWeights(spec, fmt)
    model = Model(spec, weights, Limits(CTX, SLOTS, STEP, threads=1, kv=kv))  # type: ignore[arg-type]
    return model, {n: str(weights.format(n)) for n in matrices}


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(slot, pos): a token of decoding, a prompt, or several sequences."""
    slot, pos = [], []
    for s in range(draw(st.sampled_from([1, 1, 2, SLOTS]))):
        length = draw(st.one_of(st.just(1), st.integers(1, STEP // SLOTS)))
        start = draw(st.integers(0, CTX - length))
        slot += [s] * length
        pos += range(start, start + length)
    return slot, pos


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(fmt=st.sampled_from(["q4", "q8", "mxfp4", "bf16", "mixed"]), kv=st.sampled_from(sorted(DTYPES)), step=steps(),
       seed=st.integers(0, 1000), hidden=st.booleans())  # fmt: skip
def test_predicted_bytes_are_the_metered_ones(
    name: str, fmt: str, kv: Any, step: Any, seed: int, *, hidden: bool
) -> None:
    """To the byte, with the experts that were really chosen; those of a single token are known without."""
    (model, formats), spec = model_of(name, fmt, kv), spec_of(name)
    slot, pos = step
    rng = np.random.default_rng(seed)
    want = rng.random(len(pos)) < 0.5
    model.usage.reset()
    model.step(rng.integers(0, spec.vocab, len(pos)), slot, pos, want, best=0 if hidden else None)
    totals = model.usage.totals()
    metered = {key.removeprefix("bytes_"): n for key, n in totals.items() if key.startswith("bytes_")}
    wanted = int(want.sum())
    read = model.distinct_experts, model.distinct_nodes
    assert predict_bytes(spec, formats, kv, slot, pos, wanted, *read, hidden=hidden) == metered
    assert sum(metered.values()) == totals["bytes"]
    distinct = {}
    for layer, chosen in model.chosen_experts.items():
        ff = spec.layers[layer].feed_forward
        assert ff.router is not None
        assert (chosen[:, ff.router.top_k :] == -1).all()
        distinct[layer] = len(np.unique(chosen[:, : ff.router.top_k])) + ff.shared
    assert distinct == model.distinct_experts
    assert totals["experts"] == sum(distinct.values())
    if len(pos) == 1:
        assert predict_bytes(spec, formats, kv, slot, pos, wanted, hidden=hidden) == metered


READ_ONLY_THOSE = """
import ctypes, mmap, os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from random_weights import RandomWeights
from test_determinism import routed_decoder
from lapinfer.model import Model
from lapinfer.runtime.ops import Limits

class OwnPages(RandomWeights):
    "Every expert begins at a page of its own."

    def tensor(self, name):
        stored = super().tensor(name)
        if not name.endswith(".experts"):
            return stored
        if name not in banks:
            pages = -(-stored.shape[1] // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = np.frombuffer(mmap.mmap(-1, len(stored) * pages), np.uint8).reshape(len(stored), pages)
            memory[:, : stored.shape[1]] = stored
            banks[name] = memory
        return banks[name][:, : stored.shape[1]]

banks = {}
fmt, tokens, control = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "control"
spec = routed_decoder()
model = Model(spec, OwnPages(spec, fmt), Limits(64, step=32, threads=2))
ids = [int(i) for i in np.random.default_rng(1).integers(0, spec.vocab, 32)]
model.prefill(ids)

def step():
    places = np.arange(20, 20 + tokens)
    return model.step(ids[:tokens], np.zeros(tokens, int), places, np.ones(tokens, bool)).values.copy()

expected = step()
chosen = {layer: set(map(int, experts[experts >= 0])) for layer, experts in model.chosen_experts.items()}
libc, away, kept = ctypes.CDLL(None, use_errno=True), 0, 0
for layer, used in chosen.items():
    ff, bank = spec.layers[layer].feed_forward, banks[f"layers.{layer}.experts"]
    used = used | set(range(ff.router.n_experts, ff.experts))
    if control:
        used.discard(max(used))
    for e in set(range(ff.experts)) - used:
        away += 1
        address = ctypes.c_void_p(bank[e].ctypes.data)
        assert libc.mprotect(address, ctypes.c_size_t(bank.shape[1]), 0) == 0, os.strerror(ctypes.get_errno())
    kept += len(used)
print(away, kept, flush=True)
assert np.array_equal(step(), expected)
print("the same", flush=True)
model.close()
"""


def run_without(fmt: str, tokens: int, control: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", READ_ONLY_THOSE, str(Path(__file__).parent), fmt, str(tokens), control]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent.parent)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize(("fmt", "tokens"), [("q4", 1), ("mxfp4", 1), ("f32", 2)])
def test_other_experts_need_not_be_there(fmt: str, tokens: int) -> None:
    """All experts that a step doesn't choose may be unreadable: not one byte of theirs is touched."""
    code, out, err = run_without(fmt, tokens, "none")
    assert (code, err) == (0, "")
    numbers, said = out.splitlines()
    away, kept = map(int, numbers.split())
    assert said == "the same"
    assert away >= 4
    assert away + kept == 7 + 7


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_a_needed_expert_that_is_not_there_is_noticed() -> None:
    """That the test above would fail."""
    code, out, _ = run_without("q4", 1, "control")
    assert code in (-signal.SIGSEGV, -signal.SIGBUS)
    assert "the same" not in out
